//! How foreign functions are found and their answers checked. A library is a table of functions, resolved by name when
//! the library is opened, so that a missing function is an error at start and never a panic in the middle of a run.

use std::ffi::{CStr, c_char, c_int};

use crate::{DeviceError, Result};

/// The status that foreign functions return. The bindings have enumerations for it, but a library newer than the
/// bindings may answer with a number that no enumeration knows, which a number survives.
pub type Code = c_int;

/// Declares a table of functions of one library. With `like`, arguments are compared with those of the generated
/// bindings when this is compiled, but for `loose` functions, which take a status as a number.
macro_rules! functions {
    (
        $(#[$attribute:meta])*
        pub struct $table:ident like $sys:ident;
        $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $status:ty;)*
        $(plain fn $plain:ident($($plain_argument:ident: $plain_type:ty),* $(,)?) -> $result:ty;)*
        $(loose fn $loose:ident($($loose_argument:ident: $loose_type:ty),* $(,)?) -> $loose_result:ty;)*
    ) => {
        $(const _: unsafe fn($($type),*) -> $status = $sys::$name;)*
        $(const _: unsafe fn($($plain_type),*) -> $result = $sys::$plain;)*
        functions! {
            $(#[$attribute])*
            pub struct $table;
            $(fn $name($($argument: $type),*) -> $status;)*
            $(plain fn $plain($($plain_argument: $plain_type),*) -> $result;)*
            $(loose fn $loose($($loose_argument: $loose_type),*) -> $loose_result;)*
        }
    };
    (
        $(#[$attribute:meta])*
        pub struct $table:ident;
        $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $status:ty;)*
        $(plain fn $plain:ident($($plain_argument:ident: $plain_type:ty),* $(,)?) -> $result:ty;)*
        $(loose fn $loose:ident($($loose_argument:ident: $loose_type:ty),* $(,)?) -> $loose_result:ty;)*
    ) => {
        $(#[$attribute])*
        #[allow(non_snake_case, reason = "foreign names")]
        #[derive(Clone, Copy)]
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($type),*) -> $crate::cuda::foreign::Code,)*
            $(pub $plain: unsafe extern "C" fn($($plain_type),*) -> $result,)*
            $(pub $loose: unsafe extern "C" fn($($loose_type),*) -> $loose_result,)*
        }

        impl $table {
            /// Fails with the name of the first function that `library` lacks.
            pub fn resolve(library: &libloading::Library) -> std::result::Result<$table, &'static str> {
                Ok($table {
                    // SAFETY: the type is the C declaration's, but for the status, which is an enumeration of the
                    // size of a number. Whoever opens a library keeps it open for good.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| stringify!($name))?,)*
                    // SAFETY: as above, without a status.
                    $($plain: *unsafe { library.get(concat!(stringify!($plain), "\0").as_bytes()) }
                        .map_err(|_| stringify!($plain))?,)*
                    // SAFETY: as above; a status that is handed over is a number too.
                    $($loose: *unsafe { library.get(concat!(stringify!($loose), "\0").as_bytes()) }
                        .map_err(|_| stringify!($loose))?,)*
                })
            }
        }
    };
}

pub(super) use functions;

/// The error for a call that answered with `code`, which is not that of success.
pub fn failure(call: &'static str, code: Code, name: String) -> DeviceError {
    DeviceError::Foreign { call, code, name }
}

/// `Ok` for the code 0, which is success in every library that is used here.
pub fn check(call: &'static str, code: Code, name: impl FnOnce(Code) -> String) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(failure(call, code, name(code))) }
}

/// The text at `text`, which a library owns; empty for none.
pub fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: libraries return static, zero-terminated texts here, and null was refused above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
