//! What NCCL takes by value or layout: the settings of a communicator and the name under which ranks meet. Follows the
//! header `nccl.h` of NCCL 2.28.9; nothing is called here.

use std::ffi::{c_char, c_int, c_uint};
use std::ptr::null;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NcclUniqueId(pub [u8; 128]);

/// What NCCL takes for "not set".
const UNSET: c_int = c_int::MIN;

/// `ncclConfig_t`, there named `ncclConfig_v22800`.
///
/// A library copies `size` bytes at most and keeps its own defaults for what it knows beyond them, and it ignores fields
/// that are younger than `version`: a newer library takes this one as it is.
#[repr(C)]
#[derive(Debug)]
pub struct NcclConfig {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
    comm_name: *const c_char,
    collnet_enable: c_int,
    cta_policy: c_int,
    shrink_share: c_int,
    nvls_ctas: c_int,
    num_channels_per_net_peer: c_int,
    nvlink_centric_sched: c_int,
}

impl NcclConfig {
    /// Calls return before they are done, so that waiting for other ranks can have a deadline. `max_ctas` bounds the
    /// multiprocessors that a collective takes; with `zero_cta` those that copy engines can do take none.
    pub fn not_blocking(max_ctas: Option<c_int>, zero_cta: bool) -> NcclConfig {
        const POLICY_ZERO: c_int = 2;
        NcclConfig {
            size: size_of::<NcclConfig>(),
            magic: 0xcafe_beef,
            version: 22_809,
            blocking: 0,
            cga_cluster_size: UNSET,
            min_ctas: UNSET,
            max_ctas: max_ctas.unwrap_or(UNSET),
            net_name: null(),
            split_share: UNSET,
            traffic_class: UNSET,
            comm_name: null(),
            collnet_enable: UNSET,
            cta_policy: if zero_cta { POLICY_ZERO } else { UNSET },
            shrink_share: UNSET,
            nvls_ctas: UNSET,
            num_channels_per_net_peer: UNSET,
            nvlink_centric_sched: UNSET,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{align_of, offset_of};

    use super::*;

    /// The numbers are those that a C compiler prints for the header of 2.28.9.
    #[test]
    fn the_settings_lie_in_memory_as_the_header_says() {
        assert_eq!((size_of::<NcclConfig>(), align_of::<NcclConfig>()), (80, 8));
        assert_eq!((size_of::<NcclUniqueId>(), align_of::<NcclUniqueId>()), (128, 1));
        let found = [
            offset_of!(NcclConfig, size),
            offset_of!(NcclConfig, magic),
            offset_of!(NcclConfig, version),
            offset_of!(NcclConfig, blocking),
            offset_of!(NcclConfig, cga_cluster_size),
            offset_of!(NcclConfig, min_ctas),
            offset_of!(NcclConfig, max_ctas),
            offset_of!(NcclConfig, net_name),
            offset_of!(NcclConfig, split_share),
            offset_of!(NcclConfig, traffic_class),
            offset_of!(NcclConfig, comm_name),
            offset_of!(NcclConfig, collnet_enable),
            offset_of!(NcclConfig, cta_policy),
            offset_of!(NcclConfig, shrink_share),
            offset_of!(NcclConfig, nvls_ctas),
            offset_of!(NcclConfig, num_channels_per_net_peer),
            offset_of!(NcclConfig, nvlink_centric_sched),
        ];
        assert_eq!(found, [0, 8, 12, 16, 20, 24, 28, 32, 40, 44, 48, 56, 60, 64, 68, 72, 76]);
    }

    #[test]
    fn only_what_was_asked_for_is_set() {
        let plain = NcclConfig::not_blocking(None, false);
        assert_eq!((plain.size, plain.magic, plain.version), (80, 0xcafe_beef, 22_809));
        assert_eq!((plain.blocking, plain.max_ctas, plain.cta_policy, plain.nvls_ctas), (0, UNSET, UNSET, UNSET));
        let asked = NcclConfig::not_blocking(Some(8), true);
        assert_eq!((asked.max_ctas, asked.cta_policy), (8, 2));
    }
}
