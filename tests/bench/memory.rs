//! memory.

use anyhow::Result;

use crate::stats::Table;

pub(crate) fn run(_table: &mut Table) -> Result<()> {
    Ok(())
}
