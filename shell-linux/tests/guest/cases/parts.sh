# shellcheck shell=dash
# Two partitions: the kernel finds them again after a re-read, and each write lands where the table
# says. The second starts off a MiB on purpose.
must "sfdisk" sfdisk -q /dev/vda <<END
label: gpt
start=2048, size=40960
start=45064, size=40960
END
must "re-read of the table" blockdev --rereadpt /dev/vda
must "partition 2" [ -b /dev/vda2 ]
same "start of 1" "$(cat /sys/block/vda/vda1/start)" 2048
same "start of 2" "$(cat /sys/block/vda/vda2/start)" 45064
same "size of 2" "$(cat /sys/block/vda/vda2/size)" 40960

for n in 1 2; do
    random 4 /tmp/data$n
    must "write to $n" dd if=/tmp/data$n of=/dev/vda$n bs=512k oflag=direct 2>/dev/null
done
for n in 1 2; do
    start=$(cat /sys/block/vda/vda$n/start)
    dd if=/dev/vda$n of=/tmp/back bs=512k count=8 iflag=direct 2>/dev/null
    must "data of $n through the partition" cmp /tmp/data$n /tmp/back
    dd if=/dev/vda of=/tmp/back bs=4k skip=$((start / 8)) count=1024 iflag=direct 2>/dev/null
    must "data of $n through the disk" cmp /tmp/data$n /tmp/back
done
# Right up to its end, and not beyond.
must_fail "a write beyond partition 1" dd if=/tmp/data1 of=/dev/vda1 bs=512k seek=40 count=1 oflag=direct 2>/dev/null
verify end --filename=/dev/vda2 --offset=16m --size=4m --rw=randwrite --bs=4k --iodepth=16
host_agrees 0 64
