//! hotplug.
