#!/bin/bash
# deb.sh ARCH BINARY OUT_DIR: a Debian package of the built binary, with units, default configuration, man pages and
# completions. HOST_BERTH (default: BINARY) is a binary that runs here, to write man pages and completions.
# DEB_VERSION (default: the workspace's version) is the package's. Reproducible: SOURCE_DATE_EPOCH (default: the last commit's date) is every file's date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
arch=$1 binary=$2 out=$3 host=${HOST_BERTH:-$2}
version=${DEB_VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct)}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
root=$work/berth; mkdir -p "$root/DEBIAN" "$out"
install -D -m 755 "$binary" "$root/usr/bin/berth"
for unit in berth.service berth-launcher.service; do install -D -m 644 "$here/$unit" "$root/lib/systemd/system/$unit"; done
install -D -m 644 "$here/berth.tmpfiles" "$root/usr/lib/tmpfiles.d/berth.conf"
install -D -m 644 "$here/berth.sysusers" "$root/usr/lib/sysusers.d/berth.conf"
install -D -m 644 "$here/node.yaml" "$root/etc/berth/node.yaml"
"$host" completions bash | install -D -m 644 /dev/stdin "$root/usr/share/bash-completion/completions/berth"
"$host" completions zsh | install -D -m 644 /dev/stdin "$root/usr/share/zsh/vendor-completions/_berth"
"$host" completions fish | install -D -m 644 /dev/stdin "$root/usr/share/fish/vendor_completions.d/berth.fish"
page() { gzip -9n | install -D -m 644 /dev/stdin "$root/usr/share/man/man$1/$2.$1.gz"; }
"$host" man | page 1 berth
for command in $("$host" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p'); do
  [ "$command" = help ] || "$host" man "$command" | page 1 "berth-$command"
done
page 8 berth.service <"$here/berth.service.8"
ln -s berth.service.8.gz "$root/usr/share/man/man8/berth-launcher.service.8.gz"
install -D -m 644 "$here/../../LICENSE" "$root/usr/share/doc/berth/copyright"
gzip -9nc "$here/../../CHANGELOG.md" | install -D -m 644 /dev/stdin "$root/usr/share/doc/berth/changelog.gz"
echo /etc/berth/node.yaml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 755 "$here/deb-$script" "$root/DEBIAN/$script"; done
# A static file needs nothing.
depends=
if readelf -d "$binary" | grep -q 'NEEDED.*libc\.so'; then depends=$'Depends: libc6 (>= 2.36)\n'; fi
cat >"$root/DEBIAN/control" <<CONTROL
Package: berth
Version: $version
Architecture: $arch
Maintainer: berth maintainers <maintainers@berth.example>
${depends}Recommends: udev, systemd
Section: admin
Priority: optional
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Description: carrier-grade real-time node agent for containers
 berth gives every container its own cores, devices and rights on a node, starts
 it when its hardware is plugged, and proves from the kernel that it has them.
CONTROL
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/berth_${version}_${arch}.deb" >/dev/null
echo "$out/berth_${version}_${arch}.deb"
