//! The words in which a law says what it expects.

use std::fmt::{Debug, Display};

use crate::law::{Stop, Verdict};

/// Expects that something holds.
#[track_caller]
pub(crate) fn holds(
    condition: bool,
    expected: impl Display,
    happened: impl FnOnce() -> String,
) -> Verdict {
    if condition {
        Ok(())
    } else {
        Err(Stop::failed(expected, happened()))
    }
}

/// Expects that something is as it should be.
#[track_caller]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a law reads better without a sign before each of its values"
)]
pub(crate) fn equal<Real, Wanted>(what: impl Display, real: Real, wanted: Wanted) -> Verdict
where
    Real: PartialEq<Wanted> + Debug,
    Wanted: Debug,
{
    if real == wanted {
        Ok(())
    } else {
        Err(Stop::failed(
            format!("{what} to be {wanted:?}"),
            format!("got {real:?}"),
        ))
    }
}

/// Expects that bytes are as they should be, and names the first that is not.
#[track_caller]
pub(crate) fn same_bytes(what: impl Display, at: u64, real: &[u8], wanted: &[u8]) -> Verdict {
    if real == wanted {
        return Ok(());
    }
    let different = real.iter().zip(wanted).position(|(a, b)| a != b);
    match different {
        _ if real.len() != wanted.len() => Err(Stop::failed(
            format!("{what} to have {} bytes", wanted.len()),
            format!("it has {}", real.len()),
        )),
        Some(first) => Err(Stop::failed(
            format!(
                "byte {} of {what} to be {:#04x}",
                at + first as u64,
                wanted[first]
            ),
            format!("it is {:#04x}", real[first]),
        )),
        None => Ok(()),
    }
}

/// Expects that something is refused, and with which error.
macro_rules! refused {
    ($what:expr, $result:expr, $error:pat) => {
        match $result {
            Err(error) if matches!(&error, $error) => Ok(()),
            Err(error) => Err($crate::law::Stop::failed(
                format!("{} to be refused with {}", $what, stringify!($error)),
                format!("the error was: {}", $crate::law::told(&error)),
            )),
            Ok(_) => Err($crate::law::Stop::failed(
                format!("{} to be refused with {}", $what, stringify!($error)),
                "it was done",
            )),
        }
    };
}

/// Expects that something has a form.
macro_rules! is_a {
    ($what:expr, $value:expr, $form:pat) => {
        match &$value {
            $form => Ok(()),
            other => Err($crate::law::Stop::failed(
                format!("{} to be {}", $what, stringify!($form)),
                format!("it is {other:?}"),
            )),
        }
    };
}

pub(crate) use {is_a, refused};
