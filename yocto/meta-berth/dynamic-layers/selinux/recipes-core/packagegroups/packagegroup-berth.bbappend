# Commands that read and write labels, where the distro has them.
RDEPENDS:${PN} += "${@bb.utils.contains('DISTRO_FEATURES', 'selinux', 'policycoreutils-setfiles libselinux-bin', '', d)}"
