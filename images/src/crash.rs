//! Points between the steps of a change where a power cut is rehearsed.
//!
//! Outside tests a point does nothing. In tests, `after(n)` lets the n-th point fail; what follows must leave
//! the files as they lie, as a power cut would, so clean-up asks `cut()` first.

#[cfg(test)]
use std::cell::Cell;

#[cfg(test)]
thread_local! {
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    static CUT: Cell<bool> = const { Cell::new(false) };
}

/// Passes a point. In tests it fails where the rehearsed power cut falls here.
#[cfg(not(test))]
pub(crate) fn point() -> std::io::Result<()> {
    Ok(())
}

/// Passes a point. In tests it fails where the rehearsed power cut falls here.
#[cfg(test)]
pub(crate) fn point() -> std::io::Result<()> {
    let now = LEFT.with(|left| match left.get() {
        Some(0) => true,
        Some(n) => {
            left.set(Some(n - 1));
            false
        }
        None => false,
    });
    if now {
        CUT.with(|cut| cut.set(true));
        return Err(std::io::Error::other("rehearsed power cut"));
    }
    Ok(())
}

/// Whether the power is cut, so that nothing more may be written.
#[cfg(not(test))]
pub(crate) fn cut() -> bool {
    false
}

/// Whether the power is cut, so that nothing more may be written.
#[cfg(test)]
pub(crate) fn cut() -> bool {
    CUT.with(Cell::get)
}

/// Cuts the power after `n` more points (`None`: never again).
#[cfg(test)]
pub(crate) fn after(n: Option<u32>) {
    LEFT.with(|left| left.set(n));
    CUT.with(|cut| cut.set(false));
}
