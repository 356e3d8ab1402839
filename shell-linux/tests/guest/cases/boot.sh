# The disk is what the command line of the server said.
serial=$(cat /sys/block/$disk/serial) || fail "serial cannot be read"
info "serial '$serial'"
info "discard_max_bytes $(cat /sys/block/$disk/queue/discard_max_bytes)"
info "write_cache $(cat /sys/block/$disk/queue/write_cache)"
info "max_segments $(cat /sys/block/$disk/queue/max_segments)"

same "sectors" "$(cat /sys/block/$disk/size)" "$sectors"
same "queues" "$(ls /sys/block/$disk/mq | wc -l)" "$queues"
same "logical block size" "$(cat /sys/block/$disk/queue/logical_block_size)" 512
same "read-only" "$(blockdev --getro $dev)" 0
host_agrees 0 $((sectors / 2048))
