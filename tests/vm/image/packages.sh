# What a guest is made of. Sourced by build.sh; every list can be overridden from the environment.

# Unpacked (never configured, so any architecture costs the same) into the guest's root file system.
ROOT_PACKAGES="busybox-static kmod libkmod2 udev libudev1 libc6 libgcc-s1 libblkid1 libselinux1 libacl1
 libattr1 libcap2 libpcre2-8-0 liblzma5 libzstd1 libssl3 libseccomp2 util-linux libmount1 libsmartcols1
 libuuid1 libtinfo6 libcap2-bin zlib1g libcrypt1"

# What a guest with systemd as PID 1 has more; dpkg, so that it can install and upgrade the package.
SYSTEMD_PACKAGES="libc-bin systemd libsystemd-shared libsystemd0 systemd-sysv dbus libdbus-1-3 libapparmor1 libaudit1 libcap-ng0
 libcryptsetup12 libfdisk1 libip4tc2 liblz4-1 libpam0g libgcrypt20 libgpg-error0 libdevmapper1.02.1 libjson-c5
 libargon2-1 libp11-kit0 libidn2-0 libunistring2 libffi8 libexpat1 mount dpkg libmd0 tar libbz2-1.0 coreutils libgmp10 bash
 login passwd libpam-modules libpam-runtime"

# What a guest with SELinux has more: load_policy, getenforce, and the commands that know labels.
SELINUX_PACKAGES="selinux-utils policycoreutils libsepol2 libaudit1 libcap-ng0 coreutils libgmp10"

# Needed by the initramfs to reach the root disk. crc32c is a soft dependency of ext4 that modprobe does not list.
BOOT_MODULES="virtio_pci virtio_blk crc32c_generic ext4"

# Needed by the tests.
TEST_MODULES="virtio_console virtio_net virtio_rng 9p 9pnet_virtio overlay veth bridge tun loop squashfs
 softdog i6300esb nvme e1000e e1000 igb xhci_pci usb_storage uas sd_mod usbserial ftdi_sio pl2303 cdc_acm
 cdc_ether usbnet evdev 8021q vfat nls_cp437 nls_ascii nls_iso8859-1 sdhci_pci mmc_block snd_usb_audio vfio_pci vfio_iommu_type1"
