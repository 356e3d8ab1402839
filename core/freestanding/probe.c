/* Serves one read and one flush from a ring in plain memory: the library links with nothing but
 * itself, and works. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct op { uint64_t id, offset, len; uint32_t kind; };
struct piece { uint64_t offset, len; };

int32_t sluice_init(uint8_t *base, size_t size, uint64_t sectors);
int64_t sluice_control(uint32_t kind, uint64_t a, uint64_t b, uint64_t c);
void sluice_kick(void);
bool sluice_poll(struct op *op);
bool sluice_piece(uint64_t id, uint32_t index, struct piece *piece);
void sluice_reply(uint64_t id, int64_t result);
bool sluice_publish(void);
bool sluice_arm(void);

enum { DESC = 0x0, AVAIL = 0x100, USED = 0x200, HEADER = 0x300, STATUS = 0x400, DATA = 0x1000 };

static _Alignas(4096) uint8_t guest[0x2000];

static void desc(int i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    memcpy(guest + DESC + 16 * i, &addr, 8);
    memcpy(guest + DESC + 16 * i + 8, &len, 4);
    memcpy(guest + DESC + 16 * i + 12, &flags, 2);
    memcpy(guest + DESC + 16 * i + 14, &next, 2);
}

/* Runs the chain at descriptor 0 and returns its used length, or a negative number. */
static int run(uint16_t turn, uint32_t kind)
{
    struct op op;
    struct piece piece;
    uint16_t index;
    uint32_t len;

    memset(guest + HEADER, 0, 16);
    guest[HEADER] = (uint8_t)kind;
    guest[STATUS] = 0xff;
    turn++;
    memcpy(guest + AVAIL + 2, &turn, 2);
    sluice_kick();
    while (sluice_poll(&op)) {
        uint32_t i;
        for (i = 0; sluice_piece(op.id, i, &piece); i++)
            memset(guest + piece.offset, 0x5a, piece.len);
        sluice_reply(op.id, op.kind < 2 ? (int64_t)op.len : 0);
    }
    if (!sluice_publish() || guest[STATUS] != 0)
        return -1;
    memcpy(&index, guest + USED + 2, 2);
    memcpy(&len, guest + USED + 4 + 8 * ((turn - 1) % 4) + 4, 4);
    return index == turn ? (int)len : -2;
}

int main(void)
{
    if (sluice_init(guest, sizeof guest, 64) || sluice_control(0, 0, 0, 0)
        || sluice_control(1, 1ULL << 32, 0, 0) || sluice_control(2, 0, 0, 0)
        || sluice_control(3, 4, 0, 0) || sluice_control(5, DESC, AVAIL, USED)
        || sluice_control(6, 0, 0, 0))
        return 1;
    desc(0, HEADER, 16, 1, 1);
    desc(1, DATA, 512, 3, 2);
    desc(2, STATUS, 1, 2, 0);
    if (!sluice_arm() || run(0, 0) != 513 || guest[DATA + 511] != 0x5a)
        return 2;
    if (!sluice_arm() || run(1, 4) != 1)
        return 3;
    if (sluice_control(7, 0, 0, 0) != 2)
        return 4;
    return sluice_init(guest, sizeof guest, 64) == 0;
}
