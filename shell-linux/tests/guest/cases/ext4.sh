# shellcheck shell=dash
# A file system lives on the disk: made, filled, unmounted, checked, and found again.
must "mkfs" mkfs.ext4 -q -F /dev/vda
must "mount" mount -t ext4 /dev/vda /mnt
must "copy" cp -r /bin /modules /cases /mnt
must "big file" random 8 /mnt/big
sync
rm -r /mnt/modules
mkdir /mnt/many
for i in $(seq 200); do echo "$i" >"/mnt/many/$i"; done
checksums() { find /mnt -type f -exec md5sum {} + | sort; }
checksums >/tmp/before
must "unmount" umount /mnt
must "fsck" fsck.ext4 -f -n /dev/vda >/dev/null 2>&1

echo 3 >/proc/sys/vm/drop_caches
must "second mount" mount -t ext4 /dev/vda /mnt
checksums >/tmp/after
must "files differ after remount" cmp /tmp/before /tmp/after
same "small files" "$(count /mnt/many/*)" 200
must "fstrim" fstrim /mnt
must "second unmount" umount /mnt
must "fsck after fstrim" fsck.ext4 -f -n /dev/vda >/dev/null 2>&1
host_agrees 0 32
