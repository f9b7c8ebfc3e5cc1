//! Facts about the machine that the program runs on, as its kernel tells them. Nothing here is needed for arithmetic.

use scout_core::ByteCount;

/// The most memory this process has had in RAM, or `None` where the kernel does not say.
pub fn peak_resident() -> Option<ByteCount> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteCount(kibibytes * 1024))
}

/// What the kernel calls its own run, the same for all processes under it; empty where it does not say.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// The host's name, or `host` where the kernel does not say.
pub fn name() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if !name.trim().is_empty() => name.trim().to_string(),
        _ => "host".to_string(),
    }
}
