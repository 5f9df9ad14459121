SUMMARY = "Carrier-grade real-time node agent for containers"
DESCRIPTION = "Gives every container its own cores, devices and rights on a node, starts it when its hardware is plugged, and \
proves from the kernel that it has them."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"
SECTION = "admin"

require berth-crates.inc

SRC_URI += " \
    file://berth.init \
    file://node.yaml \
    file://run-ptest \
"

inherit berth-crates pkgconfig systemd update-rc.d useradd ptest

# The binary alone: the workspace's tests and benches stay at home.
CARGO_BUILD_FLAGS:append = " -p berth"

SYSTEMD_SERVICE:${PN} = "berth-launcher.service berth.service"
INITSCRIPT_NAME = "berth"
INITSCRIPT_PARAMS = "defaults 90 10"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system berth-read; --system berth-operate"

# Symbols go into the -dbg package, not away.
export CARGO_PROFILE_RELEASE_STRIP = "none"

# What needs neither an image nor the sources beside it: the tests of the crates that a node's promises stand in.
BERTH_PTEST_CRATES = "berth-rt berth-hotplug berth-policies berth-images berth-runtime"

do_compile_ptest () {
    crates=
    for crate in ${BERTH_PTEST_CRATES}; do crates="$crates -p $crate"; done
    "${CARGO}" test --no-run --lib $crates -v --frozen --target ${RUST_HOST_SYS} ${BUILD_MODE} --manifest-path=${CARGO_MANIFEST_PATH}
}

do_install () {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/berth ${D}${bindir}/berth
    install -D -m 0644 ${UNPACKDIR}/node.yaml ${D}${sysconfdir}/berth/node.yaml
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        for unit in berth.service berth-launcher.service; do
            install -D -m 0644 ${S}/agent/dist/$unit ${D}${systemd_system_unitdir}/$unit
        done
        install -D -m 0644 ${S}/agent/dist/berth.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/berth.conf
    else
        install -D -m 0755 ${UNPACKDIR}/berth.init ${D}${sysconfdir}/init.d/berth
        install -d -m 0700 ${D}${localstatedir}/lib/berth
    fi
}

do_install_ptest () {
    # cargo names a test's binary NAME-HASH; the newest is the one just built.
    for crate in ${BERTH_PTEST_CRATES}; do
        name=$(echo $crate | tr - _)
        built=$(ls -t ${B}/target/${CARGO_TARGET_SUBDIR}/deps/$name-* | grep -v '\.d$' | head -n 1)
        install -D -m 0755 "$built" ${D}${PTEST_PATH}/tests/$crate
    done
}

DEPENDS += "${@bb.utils.contains('DISTRO_FEATURES', 'ptest', 'libseccomp udev', '', d)}"
RDEPENDS:${PN}-ptest += "busybox"
RRECOMMENDS:${PN} += " \
    kernel-module-overlay \
    kernel-module-loop \
    kernel-module-veth \
"

FILES:${PN} += "${systemd_system_unitdir} ${nonarch_libdir}/tmpfiles.d"
CONFFILES:${PN} = "${sysconfdir}/berth/node.yaml"
