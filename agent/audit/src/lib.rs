//! The audit log: who did what, each launch with its proof, each refusal, drift and change of configuration.
//!
//! A *chain* is a folder. Its records are lines of JSON, each bound to the one before it:
//!
//! ```text
//! hash(n) = SHA-256( hash(n-1) as 64 hex digits, then the record's own bytes without its hash )
//! FOLDER/current.log        the newest records; when it is full it becomes
//! FOLDER/FIRST.log          FIRST: number of its first record, twelve digits; the oldest go when there are too many
//! FOLDER/head               number and hash of the last record, and what the oldest record kept must continue
//! FOLDER/lock               flock(2): one writer at a time, of any process
//! ```
//!
//! A change, a swap, a record taken out or put in breaks the chain at that place. A cut at the end leaves a chain
//! that is whole: it is found by the head, which is written apart, and by the *seals* that the other chain of the
//! node holds (the launcher seals the agent's chain and the agent the launcher's, see [`Entry::seal`]).
//!
//! Invariants: a record is appended whole or not at all; what a power cut tore is taken off at the next append and
//! said in a record of its own ([`GAP`]); no text in a record holds a control character; nothing here starts a
//! thread. Appending does not wait for the disk: [`Chain::sync`] does.

mod chain;
mod clean;
mod head;
mod read;
mod record;
mod sink;
mod verify;

pub use chain::{AuditError, Chain, Limits};
pub use clean::{clean, clean_value};
pub use head::Head;
pub use read::{Stored, records};
pub use record::{Entry, GAP, Record, SEAL, Who};
pub use sink::Sink;
pub use verify::{Finding, Findings, Seal, seals, verify};
