SUMMARY = "A minimal real-time node: kernel, init, berth, and the OCI images it was given"
DESCRIPTION = "With systemd or busybox init (conf/fragments/init). BERTH_PRELOADED names the OCI images to bring along, \
BERTH_KERNEL_ARGS the boot arguments for the cores that are given away."
LICENSE = "Apache-2.0"

IMAGE_INSTALL = "packagegroup-core-boot packagegroup-berth ${CORE_IMAGE_EXTRA_INSTALL}"
IMAGE_LINGUAS = " "

inherit core-image berth-preloaded features_check

# The kernel fragments and the bbappends of this layer are in force only with it.
REQUIRED_DISTRO_FEATURES = "berth"

# squashfs keeps the trusted.* attributes of unpacked layers, and cannot be written.
IMAGE_FSTYPES:append = " squashfs-xz"

# `berth node cmdline` prints them for a Node document; isolcpus, nohz_full and irqaffinity are boot arguments only.
BERTH_KERNEL_ARGS ?= ""
APPEND:append = "${@' ' + d.getVar('BERTH_KERNEL_ARGS') if d.getVar('BERTH_KERNEL_ARGS') else ''}"
QB_KERNEL_CMDLINE_APPEND:append = "${@' ' + d.getVar('BERTH_KERNEL_ARGS') if d.getVar('BERTH_KERNEL_ARGS') else ''}"
# A node with cores to give away.
QB_SMP ?= "-smp 4"
