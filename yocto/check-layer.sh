#!/bin/bash
# check-layer.sh --oe-core DIR --bitbake DIR [--machines "M..."] [--keep]: parse meta-berth with bitbake and run yocto-check-layer
# on it, in a build folder of its own. DIR are checkouts of the series that conf/layer.conf names. Nothing is built, and
# nothing fetched. Needs what bitbake needs (chrpath, cpio, diffstat, file, gawk, lz4, wget, zstd, python3). As root it
# goes on as nobody, on copies: bitbake refuses root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
oe= bitbake= machines="qemux86-64 qemuarm64" keep=
usage() { echo "usage: check-layer.sh --oe-core DIR --bitbake DIR [--machines \"M...\"] [--keep]" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --oe-core) oe=${2:-}; shift 2 || usage ;;
    --bitbake) bitbake=${2:-}; shift 2 || usage ;;
    --machines) machines=${2:-}; shift 2 || usage ;;
    --keep) keep=1; shift ;;
    *) usage ;;
  esac
done
[ -n "$oe" ] && [ -n "$bitbake" ] || usage
[ -x "$oe/scripts/yocto-check-layer" ] || { echo "check-layer: $oe is no oe-core checkout (scripts/yocto-check-layer is not there)" >&2; exit 1; }
[ -x "$bitbake/bin/bitbake" ] || { echo "check-layer: $bitbake is no bitbake checkout (bin/bitbake is not there)" >&2; exit 1; }
series=$(sed -n 's/^LAYERSERIES_COMPAT_berth = "\(.*\)"/\1/p' "$here/meta-berth/conf/layer.conf")
core=$(sed -n 's/^LAYERSERIES_CORENAMES = "\(.*\)"/\1/p' "$oe/meta/conf/layer.conf")
case " $core " in *" $series "*) ;; *) echo "check-layer: the layer is for $series, $oe is $core: check out the branch $series" >&2; exit 1 ;; esac
missing=
for tool in chrpath cpio diffstat file gawk lz4c wget zstd python3 git; do command -v $tool >/dev/null || missing="$missing $tool"; done
locale -a 2>/dev/null | grep -qix 'en_US.utf-\?8' || missing="$missing locale:en_US.UTF-8"
[ -z "$missing" ] || { echo "check-layer: missing:$missing (apt-get install chrpath cpio diffstat file gawk lz4 wget zstd python3 git locales; localedef -i en_US -f UTF-8 en_US.UTF-8)" >&2; exit 1; }

work=$(mktemp -d /tmp/berth-layer.XXXXXX); [ -n "$keep" ] || trap 'rm -rf "$work"' EXIT
run=()
if [ "$(id -u)" = 0 ]; then
  # Whole copies: bitbake writes __pycache__ beside its sources, and git reads only what its caller owns.
  cp -r "$oe" "$work/oe-core"; cp -r "$bitbake" "$work/bitbake"; oe=$work/oe-core bitbake=$work/bitbake
  run=(setpriv --reuid 65534 --regid 65534 --clear-groups env -i HOME="$work" PATH="$PATH" LANG=C.UTF-8)
fi
# The commit's files and the changes on top: what a checkout would have.
mkdir "$work/berth"
git -C "$here/.." -c safe.directory='*' ls-files -z --cached --others --exclude-standard | (cd "$here/.." && xargs -0 -r sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh) |
  tar -C "$here/.." --null -T - -cf - | tar -C "$work/berth" -xf -
[ ${#run[@]} -eq 0 ] || chown -R 65534:65534 "$work"
# All offline: the checks compute signatures, and none of them needs a source.
cat >"$work/local.conf" <<'CONF'
BB_NO_NETWORK = "1"
BB_NUMBER_PARSE_THREADS = "2"
CONNECTIVITY_CHECK_URIS = ""
CONF
cat >"$work/go" <<'GO'
set -euo pipefail
work=$1 oe=$2 export_bitbake=$3; shift 3
git config --global user.name check-layer; git config --global user.email check-layer@localhost
git -C "$work/berth" init -q; git -C "$work/berth" add -A; git -C "$work/berth" commit -q -m checked
set +u
export BITBAKEDIR=$export_bitbake
. "$oe/oe-init-build-env" "$work/build" >/dev/null
set -u
cat "$work/local.conf" >>conf/local.conf
cp conf/bblayers.conf "$work/bblayers.conf"
bitbake-layers add-layer "$work/berth/yocto/meta-berth"
for init in systemd busybox; do
  echo "== bitbake -p, init/$init"
  bitbake-config-build enable-fragment "berth/init/$init"
  bitbake-config-build enable-fragment berth/realtime
  bitbake -p
  bitbake -e berth-image >/dev/null
  bitbake -e berth | grep -E '^(PN|PV|SYSTEMD_SERVICE:berth|INITSCRIPT_NAME)='
  bitbake-config-build disable-fragment "berth/init/$init"
  bitbake-config-build disable-fragment berth/realtime
done
cp "$work/bblayers.conf" conf/bblayers.conf
echo "== yocto-check-layer --machines $*"
yocto-check-layer "$work/berth/yocto/meta-berth" --no-auto-dependency --machines "$@"
GO
# shellcheck disable=SC2086
"${run[@]}" bash "$work/go" "$work" "$oe" "$bitbake" $machines
[ -z "$keep" ] || echo "check-layer: kept $work"
