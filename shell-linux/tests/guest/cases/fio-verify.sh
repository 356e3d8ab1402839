# shellcheck shell=dash
# Random writes with checksums from every processor at once, each with its own queue and its own
# part of the disk, then read back.
same "queues" "$(count /sys/block/vda/mq/*)" "$queues"

part=$((sectors / 2 / cpus))
jobs=""
cpu=0
while [ $cpu -lt "$cpus" ]; do
    jobs="$jobs --name=cpu$cpu --cpus_allowed=$cpu --offset=$((cpu * part))k --size=${part}k"
    cpu=$((cpu + 1))
done
# shellcheck disable=SC2086 # a list of options
verify all --size=0 --rw=randwrite --bs=4k --iodepth=32 $jobs
host_agrees 0 $((sectors / 2048))
