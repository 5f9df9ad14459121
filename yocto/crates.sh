#!/bin/bash
# crates.sh [CARGO_LOCK [OUT]]: writes the recipe's list of crates from Cargo.lock, one fetch line and one checksum for
# each package that comes from the registry. `make yocto-crates` runs it; a test holds that list and lock agree.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lock=${1:-$here/../Cargo.lock} out=${2:-$here/meta-berth/recipes-berth/berth/berth-crates.inc}
[ -r "$lock" ] || { echo "crates.sh: $lock cannot be read: run it in a checkout of berth" >&2; exit 1; }
registries=$(grep -c '^source = ' "$lock" || true) known=$(grep -c '^source = "registry+' "$lock" || true)
[ "$registries" = "$known" ] || { echo "crates.sh: $lock has packages that come from no registry (git?): the recipe cannot fetch them" >&2; exit 1; }
work=$(mktemp "$out.XXXXXX"); trap 'rm -f "$work"' EXIT
{
  echo "# Written by \`make yocto-crates\` from Cargo.lock: not to be edited."
  echo "BERTH_CARGO_LOCK_SHA256 = \"$(sha256sum "$lock" | cut -d' ' -f1)\""
  echo
  echo 'SRC_URI += " \'
  awk -F'"' '
    function flush() {
      if (source != "") {
        if (checksum == "") { print "crates.sh: " name " " version " has no checksum" > "/dev/stderr"; exit 1 }
        printf "    crate://${BERTH_CRATE_REGISTRY}/%s/%s \\\n", name, version
        sums = sums sprintf("SRC_URI[%s-%s.sha256sum] = \"%s\"\n", name, version, checksum)
      }
      name = version = source = checksum = ""
    }
    /^\[\[package\]\]/ { flush() }
    /^name = / { name = $2 }
    /^version = "/ { version = $2 }
    /^source = / { source = $2 }
    /^checksum = / { checksum = $2 }
    END { flush(); printf "\"\n\n%s", sums }
  ' "$lock"
} >"$work"
chmod 644 "$work"; mv "$work" "$out"
echo "$(grep -c 'crate://' "$out") crates in $out"
