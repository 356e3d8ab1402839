# shellcheck shell=dash
# The host resets the machine in the middle of writes; the second boot looks at what was kept.
# The disk remembers the boot: its first sector holds the checksum of the data.
kept=$(dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\0')
if [ -z "$kept" ]; then
    random 8 /tmp/data
    put /tmp/data 8
    md5sum </tmp/data | cut -d' ' -f1 >/tmp/note
    must "note" dd if=/tmp/note of=/dev/vda bs=512 conv=sync,notrunc oflag=direct 2>/dev/null
    fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randwrite --bs=4k \
        --offset=32m --size=32m --iodepth=64 --time_based --runtime=600 >/dev/null &
    written() { [ "$(awk '{ print $7 }' /sys/block/vda/stat)" -gt 32768 ]; }
    wait_until written
    want reset
    fail "no reset"
fi
same "data after reset" "$(sum 8 8)" "$kept"
verify after --offset=32m --size=8m --rw=randwrite --bs=4k --iodepth=32
host_agrees 0 64
