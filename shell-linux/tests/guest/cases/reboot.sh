# Three boots over one connection of the disk. The first is reset by the host in the middle of
# writes, the second reboots itself with writes under way, the third looks at what was kept.
# The disk remembers the boot: MiB 0 holds its number and the checksum of the data.
read -r boot kept <<END
$(dd if=$dev bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\0')
END
remember() {
    echo "$*" >/tmp/note
    dd if=/tmp/note of=$dev bs=512 conv=sync,notrunc oflag=direct 2>/dev/null
}
writes() {
    fio --name=load --filename=$dev --direct=1 --ioengine=libaio --rw=randwrite --bs=4k \
        --offset=32m --size=32m --iodepth=64 --time_based --runtime=600 >/dev/null 2>&1 &
    # Only once its writes do arrive.
    start=$(awk '{ print $7 }' /sys/block/$disk/stat)
    wait_until eval '[ $(awk "{ print \$7 }" /sys/block/$disk/stat) -gt $((start + 16000)) ]'
}

case "$boot" in
"")
    random 8 /tmp/data
    put /tmp/data 8
    sync
    remember 1 "$(sum 8 8)"
    writes
    want reset
    sleep 600
    ;;
1)
    same "data after reset" "$(sum 8 8)" "$kept"
    remember 2 "$kept"
    writes
    info "reboot"
    reboot -f
    sleep 600
    ;;
2)
    same "data after reboot" "$(sum 8 8)" "$kept"
    verify after --offset=32m --size=8m --rw=randwrite --bs=4k --iodepth=32
    host_agrees 0 64
    ;;
*)
    fail "the note says boot '$boot'"
    ;;
esac
