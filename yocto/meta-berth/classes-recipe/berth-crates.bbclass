# SPDX-License-Identifier: Apache-2.0
#
# The crates of a checkout of berth, and the check that their list is the one Cargo.lock asks for.
#
# BERTH_SRC                 the checkout
# BERTH_CARGO_LOCK_SHA256   of Cargo.lock when the list was made (written by `make yocto-crates` beside the list)

inherit externalsrc cargo

EXTERNALSRC = "${BERTH_SRC}"
EXTERNALSRC_BUILD = "${WORKDIR}/build"

def berth_crate_registry(d):
    """The registry's host, as Cargo.lock names its index: cargo's index is HOST-index."""
    import os, re
    lock = os.path.join(d.getVar('BERTH_SRC'), 'Cargo.lock')
    try:
        with open(lock, encoding='utf-8') as f:
            found = set(re.findall(r'^source = "registry\+[^"]*/([^/"]+)-index"$', f.read(), re.M))
    except OSError:
        # Said below, where the recipe can be skipped with the reason.
        return 'no-cargo-lock'
    return found.pop() if len(found) == 1 else 'no-registry'

BERTH_CRATE_REGISTRY = "${@berth_crate_registry(d)}"

python () {
    import os
    lock = os.path.join(d.getVar('BERTH_SRC'), 'Cargo.lock')
    if not os.path.exists(lock):
        raise bb.parse.SkipRecipe('%s is not there: set BERTH_SRC (conf/local.conf) to a checkout of berth' % lock)
    # A change of it must be seen without anybody saying so.
    bb.parse.mark_dependency(d, lock)
    found, expected = bb.utils.sha256_file(lock), d.getVar('BERTH_CARGO_LOCK_SHA256')
    if found != expected:
        raise bb.parse.SkipRecipe('%s is not the one that berth-crates.inc was made from (sha256 %s, the list says %s): '
            'run `make yocto-crates` in the checkout' % (lock, found, expected))
}
