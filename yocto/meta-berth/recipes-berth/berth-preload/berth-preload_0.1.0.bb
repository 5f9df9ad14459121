SUMMARY = "Makes berth's sealed store of OCI images when an image is built"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

require ../berth/berth-crates.inc

inherit berth-crates native

CARGO_BUILD_FLAGS:append = " -p berth-images --bin berth-preload"

do_install () {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/berth-preload ${D}${bindir}/berth-preload
}
