# shellcheck shell=dash
# Checked writes go on while the host kills the server.
want kills
rounds=0
while [ "$answer" != yes ]; do
    rounds=$((rounds + 1))
    verify "round$rounds" --size=24m --offset=$((rounds % 2 * 32))m --rw=randwrite --bs=4k \
        --iodepth=32 --randseed=$rounds
    want over
done
same "errors in the kernel's log" "$(dmesg | grep -c 'I/O error' || true)" 0
info "$rounds rounds"
host_agrees 0 $((sectors / 2048))
