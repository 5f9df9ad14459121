# SPDX-License-Identifier: Apache-2.0
#
# OCI images in the root file system: a sealed store that the agent reads below its own writable one.
#
# BERTH_PRELOADED          entries NAME[:TAG]=FILE; FILE is an OCI archive or layout folder, absolute or below
#                          DEPLOY_DIR_IMAGE. Empty: no store.
# BERTH_PRELOADED_DIR      where on the target
# BERTH_PRELOADED_DEPENDS  TASKS that make the archives, as RECIPE:do_TASK
#
# Every digest is verified on the way in, each layer is unpacked once, and the whole is read back before the image is
# made. The file system should be one that nobody can write on the target (squashfs, erofs, dm-verity).

BERTH_PRELOADED ?= ""
BERTH_PRELOADED_DIR ?= "${datadir}/berth/images"
BERTH_PRELOADED_DEPENDS ?= ""

def berth_oci_architecture(d):
    known = {'x86_64': 'amd64', 'aarch64': 'arm64'}
    return known.get(d.getVar('TARGET_ARCH'), '')

BERTH_OCI_ARCHITECTURE ?= "${@berth_oci_architecture(d)}"

do_rootfs[depends] += "${@'berth-preload-native:do_populate_sysroot' if (d.getVar('BERTH_PRELOADED') or '').strip() else ''}"
do_rootfs[depends] += "${BERTH_PRELOADED_DEPENDS}"
do_rootfs[vardeps] += "BERTH_PRELOADED BERTH_PRELOADED_DIR BERTH_OCI_ARCHITECTURE"

python () {
    import os
    entries = (d.getVar('BERTH_PRELOADED') or '').split()
    if entries and not d.getVar('BERTH_OCI_ARCHITECTURE'):
        raise bb.parse.SkipRecipe('berth has no images for TARGET_ARCH %s: x86_64 or aarch64, or set BERTH_OCI_ARCHITECTURE'
            % d.getVar('TARGET_ARCH'))
    for entry in entries:
        name, separator, path = entry.partition('=')
        if not (name and separator and path):
            raise bb.parse.SkipRecipe('BERTH_PRELOADED: %s is not NAME[:TAG]=FILE' % entry)
        if os.path.isabs(path):
            # Another archive under the same name makes the image anew.
            d.appendVarFlag('do_rootfs', 'file-checksums', ' %s:True' % path)
}

fakeroot berth_preload () {
    for entry in ${BERTH_PRELOADED}; do
        name="${entry%%=*}" path="${entry#*=}"
        case "$path" in /*) ;; *) path="${DEPLOY_DIR_IMAGE}/$path" ;; esac
        set -- "$@" "$name=$path"
    done
    [ "$#" -gt 0 ] || return 0
    berth-preload --architecture ${BERTH_OCI_ARCHITECTURE} "${IMAGE_ROOTFS}${BERTH_PRELOADED_DIR}" "$@"
}

ROOTFS_POSTPROCESS_COMMAND += "berth_preload"
