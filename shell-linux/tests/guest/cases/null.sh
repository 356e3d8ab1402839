# shellcheck shell=dash
# A disk without storage: all of it can be read and written, nothing is kept.
same "sectors" "$(cat /sys/block/vda/size)" "$sectors"
must "read of the whole disk" dd if=/dev/vda of=/dev/null bs=4M iflag=direct 2>/tmp/dd.log
grep -q "^$((sectors / 8192))+0 records in" /tmp/dd.log || fail "short read: $(cat /tmp/dd.log)"
random 4 /tmp/data
must "write" put /tmp/data 1000
must "flush" sync
