/* What changed, whether it is the same, and its checksum. */
#include "check.h"

#define DISK_SIZE (16 * MIB)

static unsigned char *model;

/* base <- a <- b: 2 MiB in base, 4 KiB of it rewritten in a, 1 MiB zeroed in b. */
static avhdx_disk *chain(const char *dir)
{
    avhdx_opts *small = opts("block-size=1M");
    avhdx_disk *disk;
    char base[64], a[64], b[64];

    NEED(mkdir(tmp(dir), 0700) == 0);
    snprintf(base, sizeof base, "%s/base.vhdx", dir);
    snprintf(a, sizeof a, "%s/a.avhdx", dir);
    snprintf(b, sizeof b, "%s/b.avhdx", dir);
    NEED(create(tmp(base), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp(base), "")) != NULL);
    memset(model, 0, DISK_SIZE);
    fill(model, 2 * MIB, 1);
    NEED(avhdx_pwrite(disk, model, 2 * MIB, 0, 0) == 0);
    NEED(avhdx_checkpoint(disk, tmp(a), small) == 0);
    model[4096] ^= 1;
    NEED(avhdx_pwrite(disk, model + 4096, 4096, 4096, 0) == 0);
    NEED(avhdx_checkpoint(disk, tmp(b), small) == 0);
    avhdx_opts_free(small);
    memset(model + MIB, 0, MIB);
    NEED(avhdx_zero(disk, MIB, MIB, 0) == 0);
    NEED(avhdx_pwrite(disk, model + 8192, 4096, 8192, 0) == 0);
    return disk;
}

static void changed_ranges(void)
{
    avhdx_disk *disk = chain("diff");
    struct avhdx_extent extents[8];
    uint64_t processed, at;
    size_t n = 8;

    CHECK_OK(avhdx_diff(disk, 0, 2, 0, DISK_SIZE, 0, extents, &n, &processed));
    CHECK_INT(n, 2);
    CHECK_INT(processed, DISK_SIZE);
    CHECK_INT(extents[0].offset, 4096);
    CHECK_INT(extents[0].length, 8192);
    CHECK_INT(extents[0].state, AVHDX_STATE_DATA);
    CHECK_INT(extents[0].layer, 0);
    CHECK(extents[0].file_offset == AVHDX_NO_OFFSET);
    CHECK_INT(extents[1].offset, MIB);
    CHECK_INT(extents[1].length, MIB);
    CHECK_INT(extents[1].state, AVHDX_STATE_ZERO);
    /* b wrote what was there already. */
    n = 8;
    CHECK_OK(avhdx_diff(disk, 0, 2, 0, DISK_SIZE, AVHDX_EXACT, extents, &n, &processed));
    CHECK_INT(n, 2);
    CHECK_INT(extents[0].offset, 4096);
    CHECK_INT(extents[0].length, 512);
    n = 8;
    CHECK_OK(avhdx_diff(disk, 1, 2, 0, DISK_SIZE, 0, extents, &n, &processed));
    CHECK_INT(n, 1);
    CHECK_INT(extents[0].length, 4096);
    /* One at a time. */
    n = 1;
    CHECK_OK(avhdx_diff(disk, 0, 2, 0, DISK_SIZE, 0, extents, &n, &processed));
    CHECK_INT(n, 1);
    CHECK(processed >= 12288 && processed <= MIB);
    at = processed;
    n = 1;
    CHECK_OK(avhdx_diff(disk, 0, 2, at, DISK_SIZE - at, 0, extents, &n, &processed));
    CHECK_INT(extents[0].offset, MIB);
    CHECK_INT(at + processed, DISK_SIZE);

    n = 8;
    processed = 7;
    CHECK_FAILS(avhdx_diff(disk, 1, 1, 0, 1, 0, extents, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_diff(disk, 0, 3, 0, 1, 0, extents, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_diff(disk, 0, 1, DISK_SIZE, 1, 0, extents, &n, &processed), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_diff(disk, 0, 1, 0, 1, AVHDX_ONE, extents, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(n == 8 && processed == 7);
    n = 0;
    CHECK_FAILS(avhdx_diff(disk, 0, 1, 0, 1, 0, extents, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_close(disk));
}

static int stop(void *user, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    ++*(unsigned *)user;
    return 1;
}

static void freed(void *user)
{
    *(unsigned *)user += 100;
}

static void comparing(void)
{
    avhdx_disk *disk = chain("compare"), *other;
    unsigned calls = 0;
    avhdx_progress_cb cb = { stop, NULL, freed };
    uint64_t at = 7;

    CHECK_INT(avhdx_compare(disk, disk, AVHDX_STRICT, &at, NULL, NULL), 0);
    CHECK_INT(at, 7);
    NEED((other = open_with(tmp("compare/a.avhdx"), "read-only")) != NULL);
    CHECK_INT(avhdx_compare(disk, other, 0, &at, NULL, NULL), 1);
    CHECK_INT(at, MIB);
    CHECK_INT(avhdx_compare(other, disk, 0, NULL, NULL, NULL), 1);
    CHECK_OK(avhdx_close(other));
    /* Larger, the same, zeros behind. */
    NEED(create(tmp("compare/copy.vhdx"), "size=20M") == 0);
    NEED((other = open_with(tmp("compare/copy.vhdx"), "")) != NULL);
    NEED(avhdx_pwrite(other, model, DISK_SIZE, 0, 0) == 0);
    CHECK_INT(avhdx_compare(disk, other, 0, &at, NULL, NULL), 0);
    CHECK_INT(avhdx_compare(disk, other, AVHDX_STRICT, &at, NULL, NULL), 1);
    CHECK_INT(at, DISK_SIZE);
    NEED(avhdx_pwrite(other, model, 1, DISK_SIZE + 77, 0) == 0);
    CHECK_INT(avhdx_compare(disk, other, 0, &at, NULL, NULL), 1);
    CHECK_INT(at, DISK_SIZE + 77);
    cb.user = &calls;
    CHECK_FAILS(avhdx_compare(disk, other, 0, &at, NULL, &cb), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_INT(calls, 101);
    CHECK_FAILS(avhdx_compare(disk, other, 1, &at, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_close(other));
    CHECK_OK(avhdx_close(disk));
}

static void checksums(void)
{
    /* SHA-256 of 1 MiB of zeros. */
    static const unsigned char zeros[4] = { 0x30, 0xe1, 0x49, 0x55 };
    unsigned char out[64], again[64];
    size_t len = sizeof out;
    avhdx_disk *disk = chain("digest"), *empty;
    avhdx_opts *o;

    CHECK_OK(avhdx_digest(disk, 0, "sha256", out, &len, NULL, NULL));
    CHECK_INT(len, 32);
    CHECK_OK(avhdx_digest(disk, 0, "sha256", again, &len, NULL, NULL));
    CHECK(memcmp(out, again, 32) == 0);
    CHECK_OK(avhdx_digest(disk, 1, "sha256", again, &len, NULL, NULL));
    CHECK(memcmp(out, again, 32) != 0);
    len = 64;
    CHECK_OK(avhdx_digest(disk, 2, "sha512", out, &len, NULL, NULL));
    CHECK_INT(len, 64);
    len = 31;
    CHECK_FAILS(avhdx_digest(disk, 0, "sha256", out, &len, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_hint(NULL), "32");
    CHECK_INT(len, 31);
    len = 64;
    CHECK_FAILS(avhdx_digest(disk, 0, "md5", out, &len, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_hint(NULL), "sha256");
    CHECK_FAILS(avhdx_digest(disk, 3, "sha256", out, &len, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    o = opts("rate=1T");
    CHECK_OK(avhdx_digest(disk, 1, "sha256", out, &len, o, NULL));
    CHECK_OK(avhdx_compare(disk, disk, 0, NULL, o, NULL));
    avhdx_opts_free(o);
    o = opts("rate=1T,mode=copy");
    CHECK_FAILS(avhdx_digest(disk, 1, "sha256", out, &len, o, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "mode");
    CHECK_FAILS(avhdx_compare(disk, disk, 0, NULL, o, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_opts_free(o);
    CHECK_OK(avhdx_close(disk));
    NEED(create(tmp("digest/empty.vhdx"), "size=1M") == 0);
    NEED((empty = open_with(tmp("digest/empty.vhdx"), "read-only")) != NULL);
    CHECK_OK(avhdx_digest(empty, 0, "sha256", out, &len, NULL, NULL));
    CHECK(memcmp(out, zeros, sizeof zeros) == 0);
    CHECK_OK(avhdx_close(empty));
}

int main(void)
{
    model = malloc(DISK_SIZE);
    NEED(model);
    RUN(changed_ranges);
    RUN(comparing);
    RUN(checksums);
    free(model);
    return check_end();
}
