# With meta-selinux and a distro that has it: the project's policy, built from its sources, beside the node's own.
# It is a whole policy (MLS, no reference policy needed); a node that runs another keeps that one as SELINUXTYPE.
DEPENDS += "${@bb.utils.contains('DISTRO_FEATURES', 'selinux', 'secilc-native', '', d)}"

do_install:append () {
    if ${@bb.utils.contains('DISTRO_FEATURES', 'selinux', 'true', 'false', d)}; then
        oe_runmake -C ${S}/policies/selinux OUT=${B}/selinux
        install -D -m 0644 ${B}/selinux/policy.33 ${D}${sysconfdir}/selinux/berth/policy/policy.33
        install -D -m 0644 ${S}/policies/selinux/file_contexts ${D}${sysconfdir}/selinux/berth/contexts/files/file_contexts
    fi
}

FILES:${PN} += "${sysconfdir}/selinux/berth"
