# shellcheck shell=dash
# A disk that may only be read: the guest is told so, reads are right, and nothing gets written.
same "blockdev --getro" "$(blockdev --getro /dev/vda)" 1
random 1 /tmp/data
must_fail "a write went through" put /tmp/data 1
must_fail "a discard went through" blkdiscard -f -o 0 -l 1m /dev/vda 2>/dev/null
must_fail "mkfs went through" mkfs.ext4 -q -F /dev/vda 2>/dev/null
host_agrees 0 64
