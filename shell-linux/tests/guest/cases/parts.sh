# Two partitions: the kernel finds them again after a re-read, and each write lands where the table
# says. The second starts off a MiB on purpose.
must "sfdisk" sfdisk -q $dev <<END
label: gpt
start=2048, size=40960
start=45064, size=40960
END
must "re-read of the table" blockdev --rereadpt $dev
wait_until [ -b ${dev}2 ]
same "start of 1" "$(cat /sys/block/$disk/${disk}1/start)" 2048
same "start of 2" "$(cat /sys/block/$disk/${disk}2/start)" 45064
same "size of 2" "$(cat /sys/block/$disk/${disk}2/size)" 40960

for n in 1 2; do
    random 4 /tmp/data$n
    must "write to $n" dd if=/tmp/data$n of=$dev$n bs=512k oflag=direct 2>/dev/null
done
for n in 1 2; do
    start=$(cat /sys/block/$disk/$disk$n/start)
    dd if=$dev$n of=/tmp/back bs=512k count=8 iflag=direct 2>/dev/null
    must "data of $n through the partition" cmp /tmp/data$n /tmp/back
    dd if=$dev of=/tmp/back bs=4k skip=$((start / 8)) count=1024 iflag=direct 2>/dev/null
    must "data of $n through the disk" cmp /tmp/data$n /tmp/back
done
# Right up to its end, and not beyond.
must_fail "a write beyond partition 1" dd if=/tmp/data1 of=${dev}1 bs=512k seek=40 count=1 oflag=direct 2>/dev/null
verify end --filename=${dev}2 --offset=16m --size=4m --rw=randwrite --bs=4k --iodepth=16
host_agrees 0 64
