//! Devices: kernel and udevd events, enumeration, the inventory, and rules in udev's match grammar.
//!
//! The way of one event: [`monitor::Monitor`] reads it (netlink `NETLINK_KOBJECT_UEVENT`, from the kernel or
//! from udevd) → [`event::Event`] with its [`device::Device`] → [`inventory::Inventory`] turns it into a
//! [`inventory::Delta`] → [`rule::Rules::choose`] finds the rule → [`template::Template`] fills in env, args
//! and labels.
//!
//! Invariants:
//! * Events trigger, enumeration decides: start-up, an overflowing socket and a periodic check all use
//!   [`inventory::Inventory::resync`]. The monitor is opened before the first enumeration.
//! * What a device says of itself is hostile input: lengths are bounded, paths are checked where they enter
//!   ([`device`]), and a text with control characters never reaches an environment, an argument or a
//!   terminal ([`safe`]).
//! * A rule matches exactly when its explanation holds: there is one evaluator ([`rule::explain`]).
//! * With the kernel as the source nothing here calls libudev.

pub mod device;
pub mod enumerate;
pub mod event;
pub mod glob;
pub mod inventory;
pub mod monitor;
pub mod recording;
pub mod rule;
pub mod safe;
pub mod sysfs;
pub mod template;
mod udevd;
