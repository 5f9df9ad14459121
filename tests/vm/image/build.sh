#!/bin/bash
# build.sh OUT ARCH KERNEL_META [FLAVOUR]: make OUT/ARCH-KERNEL_META-FLAVOUR/{vmlinuz,initrd.gz,root.ext4,config,
# kernel-version} from Debian packages.
#
#   OUT          folder of the rig; downloaded packages are kept in OUT/cache
#   ARCH         amd64 | arm64
#   KERNEL_META  a Debian meta package (linux-image-6.12-rt-amd64); the exact version is derived from the
#                archive, so that a point release needs no change here, and is printed
#   FLAVOUR      busybox (default: busybox init and udevd) | busybox-selinux (the same with policies/selinux, its
#                labels written here; boot it with security=selinux enforcing=1) | systemd (real systemd as PID 1)
#
# Needs apt-get, dpkg-deb, depmod and modprobe (kmod), cpio, mke2fs (e2fsprogs), zstd, xz; for SELinux make, secilc,
# setfiles (policycoreutils) and root. No loop device, no mount.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/packages.sh"
out=$1 arch=$2 meta=$3 flavour=${4:-busybox}
img=$out/$arch-$meta-$flavour cache=$out/cache/$arch work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$img" "$cache" "$work"/{kernel,root,initrd}
# One at a time: they share the packages, and two may be after the same image.
exec 9>"$out/lock"; flock 9

say() { printf 'rig: %s\n' "$*" >&2; }
kernel=$(apt-cache depends "$meta:$arch" 2>/dev/null | awk '$1=="Depends:" && $2 ~ /^linux-image-/ {sub(/:.*/, "", $2); print $2; exit}')
[ -n "$kernel" ] || { say "no package $meta:$arch in the archive: run apt-get update (and dpkg --add-architecture $arch); no guest was built"; exit 1; }
version=${kernel#linux-image-}
policy=$here/../../../policies/selinux
case $flavour in *-selinux) sources=("$here"/* "$policy"/*.cil "$policy"/{Makefile,file_contexts}) ;; *) sources=("$here"/*) ;; esac
stamp="$version $(cat "${sources[@]}" | sha256sum | cut -c1-16)"
if [ "$(cat "$img/stamp" 2>/dev/null)" = "$stamp" ]; then say "$arch $version is built already"; exit 0; fi
say "building $arch guest with $kernel and $flavour init"
case $flavour in
  busybox) ;;
  busybox-selinux)
    for tool in make secilc setfiles; do
      command -v $tool >/dev/null || { say "$tool is missing (apt-get install make secilc policycoreutils); no guest was built"; exit 1; }
    done
    ROOT_PACKAGES="$ROOT_PACKAGES $SELINUX_PACKAGES"
    make -s -C "$policy" OUT="$work/policy"
    ;;
  systemd) ROOT_PACKAGES="$ROOT_PACKAGES $SYSTEMD_PACKAGES" ;;
  *) say "no flavour $flavour: busybox, busybox-selinux or systemd"; exit 1 ;;
esac

# --- download what is not there yet (the cache is the only thing worth keeping between runs)
want=()
for p in $ROOT_PACKAGES "$kernel"; do compgen -G "$cache/${p}_*.deb" >/dev/null || want+=("$p:$arch"); done
if ((${#want[@]})); then (cd "$cache" && apt-get download -q -o APT::Sandbox::User=root "${want[@]}" >/dev/null); fi

unpack() { # unpack DIR DEB...: keep merged-/usr links, drop what a guest never reads
  local dir=$1 deb; shift
  for deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir" --keep-directory-symlink --exclude='./usr/share/doc' \
      --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/share/bash-completion' \
      --exclude='./usr/share/lintian' --exclude='./usr/lib/*/gconv'
  done
}
merged_usr() { local d; for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -sfn "usr/$d" "$1/$d"; done; }

# --- kernel: unpacked once for all its flavours; reading 4000 modules is most of what an image costs
tree=$cache/$kernel
if [ "$(cat "$tree/done" 2>/dev/null)" != "$(cksum <"$here/build.sh")" ]; then
  rm -rf "$tree"
  unpack "$work/kernel" "$cache/${kernel}"_*.deb
  if [ "$arch" = amd64 ]; then
    # Boot the unpacked ELF through PVH: unpacking under emulation costs seconds. Packed with zstd since 6.x backports,
    # with xz before; a packing that is not known is booted as it is.
    python3 - "$work/kernel/boot/vmlinuz-$version" <<'PY'
import lzma, subprocess, sys
packed = open(sys.argv[1], "rb").read()
elf = b""
if (at := packed.find(b"\xfd7zXZ\0")) >= 0:
    elf = lzma.LZMADecompressor().decompress(packed[at:])
elif (at := packed.find(b"\x28\xb5\x2f\xfd")) >= 0:
    # zstd complains of the bytes behind the stream, after it has written all of it
    elf = subprocess.run(["zstd", "-dc"], input=packed[at:], capture_output=True).stdout
if elf[:4] == b"\x7fELF":
    open(sys.argv[1], "wb").write(elf)
PY
  fi
  depmod -b "$work/kernel" "$version"
  mv "$work/kernel" "$tree"
  cksum <"$here/build.sh" >"$tree/done"
fi
cp "$tree/boot/vmlinuz-$version" "$img/vmlinuz"
cp "$tree/boot/config-$version" "$img/config"
modules() { # modules DIR NAME...: copy modules with what they depend on
  local dir=$1 m; shift
  for m; do
    modprobe -d "$tree" -S "$version" --show-depends --ignore-install "$m" 2>/dev/null || say "module $m is absent in $version"
  done | awk '$1=="insmod" {print $2}' | sort -u | while read -r m; do
    install -D -m 644 "$m" "$dir${m#"$tree"}"
  done
  cp "$tree/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$dir/lib/modules/$version/"
  depmod -b "$dir" "$version"
}

# --- root file system
root=$work/root
merged_usr "$root"
for p in $ROOT_PACKAGES; do unpack "$root" "$cache/${p}"_*.deb; done
rm -rf "$root"/usr/share/{zoneinfo,i18n,common-licenses} "$root/var/cache"
mkdir -p "$root"/{proc,sys,dev,run,tmp,mnt,root,etc/berth,var/lib/berth,var/log,host}
# What the kernel was built with, where Debian has it.
install -D -m 644 "$img/config" "$root/boot/config-$version"
# shellcheck disable=SC2086
modules "$root" $BOOT_MODULES $TEST_MODULES
# busybox fills every name that no real package provides (-L: a package's own absolute link dangles from here)
busybox --list-full | while read -r applet; do
  name=${applet##*/}
  for dir in usr/bin usr/sbin; do if [ -e "$root/$dir/$name" ] || [ -L "$root/$dir/$name" ]; then continue 2; fi; done
  ln -s /usr/bin/busybox "$root/$applet"
done
install -D -m 755 "$here/guest-rcS" "$root/etc/rcS"
for script in guest-shell guest-setup; do install -D -m 755 "$here/$script" "$root/usr/sbin/$script"; done
printf '::sysinit:/etc/rcS\n::respawn:/usr/sbin/guest-shell\n::ctrlaltdel:/sbin/reboot -f\n' >"$root/etc/inittab"
echo 'root::0:0:root:/root:/bin/sh' >"$root/etc/passwd"
printf '%s\n' root:x:0: tty:x:5: disk:x:6: lp:x:7: kmem:x:15: dialout:x:20: cdrom:x:24: tape:x:26: audio:x:29: \
  video:x:44: input:x:105: kvm:x:106: sgx:x:107: render:x:108: >"$root/etc/group"
if [ "$flavour" = systemd ]; then
  install -D -m 644 "$here/guest-shell.service" "$root/etc/systemd/system/guest-shell.service"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/var/lib/dpkg"/{info,updates,triggers}
  ln -s ../guest-shell.service "$root/etc/systemd/system/multi-user.target.wants/guest-shell.service"
  for unit in dbus systemd-logind systemd-resolved systemd-timesyncd systemd-networkd getty@tty1 serial-getty@ttyS0 systemd-firstboot \
    systemd-hwdb-update systemd-update-utmp dbus.socket fstrim.timer e2scrub_all.timer; do
    case $unit in *.timer | *.socket) ;; *) unit=$unit.service ;; esac
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
  ln -sfn /lib/systemd/systemd "$root/usr/sbin/init"
  echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
  echo "messagebus:x:101:101::/nonexistent:/bin/false" >>"$root/etc/passwd"; echo "messagebus:x:101:" >>"$root/etc/group"
  # dpkg knows what is there, so that a package's dependencies are really looked at.
  for p in $ROOT_PACKAGES; do
    dpkg-deb -f "$cache/${p}"_*.deb | sed '/^Package:/a Status: install ok installed'; echo
  done >"$root/var/lib/dpkg/status"
  : >"$root/var/lib/dpkg/available"
fi
if [ "$flavour" = busybox-selinux ]; then
  # Labels are written here, so that the guest never relabels.
  make -s -C "$policy" OUT="$work/policy" DESTDIR="$root" install
  setfiles -F -r "$root" "$policy/file_contexts" "$root"
fi
rm -f "$img/root.ext4"
mke2fs -q -t ext4 -L root -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 -d "$root" "$img/root.ext4" 512M >/dev/null

# --- initramfs: find the root disk, switch. A real root matters: pivot_root(2) cannot leave an initramfs.
initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,newroot}
cp "$root/usr/bin/busybox" "$initrd/bin/busybox"
install -m 755 "$here/initramfs-init" "$initrd/init"
# shellcheck disable=SC2086
modules "$initrd" $BOOT_MODULES
(cd "$initrd" && find . | LC_ALL=C sort | cpio -o -H newc --quiet | gzip -1) >"$img/initrd.gz"
echo "$version" >"$img/kernel-version"
echo "$stamp" >"$img/stamp"
say "built $img: $(du -sh "$img" | cut -f1)"
