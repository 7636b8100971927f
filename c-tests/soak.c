/* The C side of scripts/soak, run in the directory of the tree:
 *
 *   soak init NAME...     root.vhdx, and on it a chain NAME-0.avhdx with its model, NAME.model, for each NAME
 *   soak work NAME SEED   threads that write, zero, discard, read and flush while another changes the layers; until killed
 *   soak verify NAME      after a kill: finishes what was interrupted, compares all layers with the model
 *   soak leaf NAME        prints the file name of the leaf
 *   soak did NAME WHAT    what another program is about to do to the leaf: merge or nothing
 *   soak count NAME       prints operations, changes of layers, violations
 *
 * The model is a mapped file, so it survives the kill: for each page the number of the last write begun, completed and
 * flushed. After a kill a sector holds what was flushed last or something begun since. */
#include "avhdx.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 4
#define PAGE 4096
#define SECTOR 512
#define MIB (1 << 20)
#define SIZE (48 * MIB)
#define PAGES (SIZE / PAGE)
/* Pages in a row that belong to one thread; behind SHARED each thread has every fourth MiB. */
#define RUN 16
#define SHARED (32 * MIB / PAGE)
#define SLOTS 12
#define MOST_LAYERS 7

enum doing { NOTHING, CHECKPOINT, MERGE, DELETE_INTO_PARENT, DELETE_INTO_CHILDREN };

/* The least and the greatest number a page may hold, and the last one that meant zeros. */
struct window {
    uint32_t low, high, zero;
};

struct page {
    _Atomic uint32_t begun, completed, flushed, zero;
};

struct slot {
    char name[32];
    struct window pages[PAGES];
};

struct model {
    _Atomic uint64_t operations, changes, violations;
    /* What is being done to the layers: to the leaf, or to the layer named `top` with the layer named `base`. */
    _Atomic int doing;
    char leaf[32], top[32], base[32];
    uint32_t next_file;
    /* Numbers are never used twice, not even those of writes that were lost. */
    uint32_t numbers[PAGES];
    struct page pages[PAGES];
    struct slot slots[SLOTS];
};

static struct model *model;
static const char *who;
static avhdx_disk *disk;

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void violation(const char *what, const char *name, uint64_t number)
{
    if (atomic_fetch_add(&model->violations, 1) < 20)
        fprintf(stderr, "VIOLATION: %s: %s: %s %" PRIu64 " (%s)\n", who, what, name, number, avhdx_error_message(NULL));
}

static void fatal(const char *what)
{
    fprintf(stderr, "VIOLATION: %s: %s: %s: %s\n", who, what, avhdx_error_path(NULL), avhdx_error_message(NULL));
    fprintf(stderr, "    %s; %s\n", avhdx_error_cause(NULL), strerror(errno));
    if (model)
        atomic_fetch_add(&model->violations, 1);
    exit(1);
}

static void map_model(const char *name, int create)
{
    char path[64];
    int fd;

    who = name;
    snprintf(path, sizeof path, "%s.model", name);
    fd = open(path, O_RDWR | (create ? O_CREAT | O_EXCL : 0), 0666);
    if (fd < 0 || (create && ftruncate(fd, sizeof *model) != 0))
        fatal(path);
    model = mmap(NULL, sizeof *model, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (model == MAP_FAILED)
        fatal("mmap");
    close(fd);
}

static avhdx_opts *options(const char *line)
{
    avhdx_opts *opts = avhdx_opts_new();

    if (avhdx_opts_parse(opts, line) < 0)
        fatal(line);
    return opts;
}

static void open_leaf(const char *line)
{
    avhdx_opts *opts = options(line);

    if (avhdx_open(&disk, model->leaf, opts) < 0)
        fatal("open");
    avhdx_opts_free(opts);
}

static const char *layer_name(uint32_t layer)
{
    const char *path = avhdx_layer_path(disk, layer), *slash = path ? strrchr(path, '/') : NULL;

    return slash ? slash + 1 : path ? path : "";
}

/* ---- pages ---- */

static void fill(unsigned char *buf, uint32_t page, uint32_t number)
{
    uint64_t word = (uint64_t)(page + 1) << 32 | number;
    size_t i;

    for (i = 0; i < PAGE; i += sizeof word)
        memcpy(buf + i, &word, sizeof word);
}

/* The number a sector holds, 0 for zeros; -1 when it is torn or somebody else's. */
static int64_t number_in(const unsigned char *sector, uint32_t page)
{
    uint64_t first, word;
    size_t i;

    memcpy(&first, sector, sizeof first);
    for (i = 0; i < SECTOR; i += sizeof word) {
        memcpy(&word, sector + i, sizeof word);
        if (word != first)
            return -1;
    }
    if (first == 0)
        return 0;
    return first >> 32 == page + 1 && (uint32_t)first != 0 ? (int64_t)(uint32_t)first : -1;
}

/* Compares a page with what it may be, and narrows that to what it is. */
static void judge(const unsigned char *buf, uint32_t page, struct window *may, const char *what)
{
    struct window is = { UINT32_MAX, 0, may->zero };
    uint32_t i;

    for (i = 0; i < PAGE; i += SECTOR) {
        int64_t number = number_in(buf + i, page);

        if (number == 0 && may->zero >= may->low && may->zero <= may->high)
            number = may->zero;
        else if (number <= 0 || number < may->low || number > may->high) {
            uint64_t word;
            char text[200];
            memcpy(&word, buf + i, sizeof word);
            snprintf(text, sizeof text, "%s: page %u holds %#" PRIx64 ", not %u to %u (zeros %u), sector", what, page, word,
                     may->low, may->high, may->zero);
            violation("wrong content", text, i / SECTOR);
            return;
        }
        if (number < is.low)
            is.low = (uint32_t)number;
        if (number > is.high)
            is.high = (uint32_t)number;
    }
    if (is.low == is.high && is.high != is.zero)
        is.zero = 0;
    *may = is;
}

/* What a page may hold that holds at least `low`. Its number of zeros is announced before it is the last one begun. */
static struct window possible(uint32_t page, uint32_t low)
{
    struct window may = { low, 0, atomic_load(&model->pages[page].zero) };

    may.high = atomic_load(&model->pages[page].begun);
    if (may.high < may.zero)
        may.high = may.zero;
    return may;
}

/* ---- layers ---- */

static struct slot *find_slot(const char *name)
{
    int i;

    for (i = 0; i < SLOTS; i++)
        if (strcmp(model->slots[i].name, name) == 0)
            return &model->slots[i];
    return NULL;
}

/* What the checkpoint now begun will hold: at least what is completed now. */
static void freeze(const char *name)
{
    struct slot *slot = find_slot("");
    uint32_t i;

    for (i = 0; i < PAGES; i++)
        slot->pages[i].low = atomic_load(&model->pages[i].completed);
    strcpy(slot->name, name);
}

/* And at most what was begun until now. */
static void frozen(const char *name)
{
    struct slot *slot = find_slot(name);
    uint32_t i;

    for (i = 0; i < PAGES; i++)
        slot->pages[i] = possible(i, slot->pages[i].low);
}

static void forget(const char *name)
{
    struct slot *slot = find_slot(name);

    if (slot)
        memset(slot, 0, sizeof *slot);
}

/* The layer `top` is in `base`. */
static void merged(void)
{
    struct slot *top = find_slot(model->top);

    forget(model->base);
    if (strcmp(model->top, model->leaf) == 0)
        strcpy(model->leaf, model->base);
    else if (top)
        strcpy(top->name, model->base);
}

static void begin(enum doing doing, const char *top, const char *base)
{
    strcpy(model->top, top);
    strcpy(model->base, base);
    atomic_store(&model->doing, doing);
}

static int refused(void)
{
    int code = avhdx_error_code(NULL);

    return code == AVHDX_ERR_LOCKED || code == AVHDX_ERR_HAS_CHILDREN;
}

static void checkpoint(uint64_t *state)
{
    static const char *blocks[] = { "block-size=1M", "block-size=2M", "block-size=4M" };
    avhdx_opts *opts = options(blocks[draw(state) % 3]);
    char name[32];

    snprintf(name, sizeof name, "%s-%u.avhdx", who, ++model->next_file);
    freeze(model->leaf);
    begin(CHECKPOINT, name, model->leaf);
    if (avhdx_checkpoint(disk, name, opts) < 0)
        violation("checkpoint", name, 0);
    frozen(model->leaf);
    strcpy(model->leaf, name);
    atomic_store(&model->doing, NOTHING);
    avhdx_opts_free(opts);
}

static void merge(uint64_t *state, uint32_t top)
{
    static const char *modes[] = { "mode=copy", "mode=consume", "mode=auto,verify=on" };
    avhdx_opts *opts = options(modes[draw(state) % 3]);

    begin(MERGE, layer_name(top), layer_name(top + 1));
    if (avhdx_merge(disk, top, top + 1, opts, NULL) == 0)
        merged();
    else if (!refused())
        violation("merge", model->top, top);
    else if (access(model->top, F_OK) != 0)
        violation("a merge was refused too late", model->top, top);
    atomic_store(&model->doing, NOTHING);
    avhdx_opts_free(opts);
}

static void delete(uint64_t *state, uint32_t layer)
{
    int into_parent = draw(state) % 2 == 0;
    avhdx_opts *opts = options(into_parent ? "into=parent" : "into=children");

    begin(into_parent ? DELETE_INTO_PARENT : DELETE_INTO_CHILDREN, layer_name(layer), layer_name(layer + 1));
    if (avhdx_delete_layer(disk, layer, opts, NULL) == 0)
        into_parent ? merged() : forget(model->top);
    else if (!refused())
        violation("delete", model->top, layer);
    atomic_store(&model->doing, NOTHING);
    avhdx_opts_free(opts);
}

/* root.vhdx is below all chains, the lowest file of a chain above it: neither is merged away. */
static void *change_layers(void *arg)
{
    uint64_t state = *(uint64_t *)arg * 31 + 7;
    avhdx_opts *opts;

    for (;;) {
        uint32_t own = (uint32_t)avhdx_layer_count(disk) - 1, pick = (uint32_t)draw(&state) % 8;

        if (own < 3 || (own < MOST_LAYERS && pick < 3)) {
            checkpoint(&state);
        } else if (pick < 5) {
            merge(&state, 1 + (uint32_t)draw(&state) % (own - 2));
        } else if (pick == 5) {
            merge(&state, 0);
        } else if (pick == 6) {
            delete(&state, 1 + (uint32_t)draw(&state) % (own - 2));
        } else {
            opts = options(draw(&state) % 2 ? "mode=full" : "mode=quick");
            if (avhdx_compact(disk, opts, NULL) < 0)
                violation("compact", model->leaf, 0);
            avhdx_opts_free(opts);
        }
        own = (uint32_t)avhdx_layer_count(disk) - 1;
        if (draw(&state) % 16 == 0 && avhdx_merge(disk, own - 1, own, NULL, NULL) == 0)
            violation("a parent of other chains was merged into", "root.vhdx", 0);
        atomic_fetch_add(&model->changes, 1);
        usleep((useconds_t)(draw(&state) % 40000));
    }
    return NULL;
}

/* ---- threads ---- */

/* Pages of this thread, in a row. */
static uint32_t some_pages(uint64_t *state, uint32_t self, uint32_t *first)
{
    uint32_t within = (uint32_t)draw(state) % RUN, run;

    if (draw(state) % 4) /* a few of them, so that what moved is soon written again */
        run = (uint32_t)draw(state) % (SHARED / RUN / THREADS / 4) * 4 * THREADS + self;
    else
        run = (uint32_t)draw(state) % (SHARED / RUN / THREADS) * THREADS + self;
    *first = run * RUN + within;
    return 1 + (uint32_t)draw(state) % (RUN - within);
}

static void begun(uint32_t first, uint32_t count, int zero)
{
    for (uint32_t i = first; i < first + count; i++) {
        uint32_t number = ++model->numbers[i];

        if (zero)
            atomic_store(&model->pages[i].zero, number);
        atomic_store(&model->pages[i].begun, number);
    }
}

static void completed(uint32_t first, uint32_t count)
{
    for (uint32_t i = first; i < first + count; i++)
        atomic_store(&model->pages[i].completed, atomic_load(&model->pages[i].begun));
}

static void flushed(uint32_t page, uint32_t number)
{
    uint32_t old = atomic_load(&model->pages[page].flushed);

    while (old < number && !atomic_compare_exchange_weak(&model->pages[page].flushed, &old, number))
        ;
}

static void flush(void)
{
    uint32_t *before = malloc(PAGES * sizeof *before), i;

    for (i = 0; i < PAGES; i++)
        before[i] = atomic_load(&model->pages[i].completed);
    if (avhdx_flush(disk) < 0)
        violation("flush", model->leaf, 0);
    else
        for (i = 0; i < PAGES; i++)
            flushed(i, before[i]);
    free(before);
}

static void read_back(uint32_t first, uint32_t count)
{
    unsigned char buf[RUN * PAGE];

    if (avhdx_pread(disk, buf, count * PAGE, (uint64_t)first * PAGE) < 0) {
        violation("read", model->leaf, first);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct page *page = &model->pages[first + i];
        uint32_t number = atomic_load(&page->completed);
        /* The sectors of a page that was torn by a kill may differ until it is written again. */
        struct window may = { number, number, atomic_load(&page->zero) };

        if (number == model->numbers[first + i])
            judge(buf + i * PAGE, first + i, &may, "live");
    }
}

static void *work(void *arg)
{
    uint64_t state = *(uint64_t *)arg;
    uint32_t self = (uint32_t)state % THREADS, first, count, i;
    unsigned char buf[RUN * PAGE];

    for (;;) {
        uint32_t pick = (uint32_t)draw(&state) % 32;

        count = some_pages(&state, self, &first);
        if (pick < 12) {
            int fua = draw(&state) % 32 == 0;

            begun(first, count, 0);
            for (i = 0; i < count; i++)
                fill(buf + i * PAGE, first + i, model->numbers[first + i]);
            if (avhdx_pwrite(disk, buf, count * PAGE, (uint64_t)first * PAGE, fua ? AVHDX_FUA : 0) < 0)
                violation("write", model->leaf, first);
            completed(first, count);
            for (i = first; fua && i < first + count; i++)
                flushed(i, model->numbers[i]);
        } else if (pick < 14) {
            begun(first, count, 1);
            if (avhdx_zero(disk, (uint64_t)first * PAGE, count * PAGE, pick % 2 ? AVHDX_MAY_UNMAP : 0) < 0)
                violation("zero", model->leaf, first);
            completed(first, count);
        } else if (pick == 14 && draw(&state) % 8 == 0) {
            /* A whole MiB of this thread: written or zeroed. */
            first = SHARED + ((uint32_t)draw(&state) % (16 / THREADS) * THREADS + self) * (MIB / PAGE);
            begun(first, MIB / PAGE, 1);
            if (avhdx_zero(disk, (uint64_t)first * PAGE, MIB, AVHDX_MAY_UNMAP) < 0)
                violation("zero", model->leaf, first);
            completed(first, MIB / PAGE);
        } else if (pick == 15) {
            first = SHARED + ((uint32_t)draw(&state) % (16 / THREADS) * THREADS + self) * (MIB / PAGE)
                    + (uint32_t)draw(&state) % (MIB / PAGE);
            begun(first, 1, 0);
            fill(buf, first, model->numbers[first]);
            if (avhdx_pwrite(disk, buf, PAGE, (uint64_t)first * PAGE, 0) < 0)
                violation("write", model->leaf, first);
            completed(first, 1);
        } else if (pick == 16 && draw(&state) % 4 == 0) {
            flush();
        } else {
            read_back(first, count);
        }
        atomic_fetch_add(&model->operations, 1);
    }
    return NULL;
}

/* ---- after a kill ---- */

static void verify_layer(uint32_t layer, struct window *pages, const char *name)
{
    unsigned char *buf = malloc(MIB);
    uint32_t page, i;

    for (page = 0; page < PAGES; page += MIB / PAGE) {
        if (avhdx_layer_pread(disk, layer, buf, MIB, (uint64_t)page * PAGE) < 0)
            violation("read", name, page);
        else
            for (i = 0; i < MIB / PAGE; i++)
                judge(buf + i * PAGE, page + i, &pages[page + i], name);
    }
    free(buf);
}

static void verify_leaf(void)
{
    struct window *pages = calloc(PAGES, sizeof *pages);
    uint32_t i;

    for (i = 0; i < PAGES; i++)
        pages[i] = possible(i, atomic_load(&model->pages[i].flushed));
    verify_layer(0, pages, model->leaf);
    for (i = 0; i < PAGES; i++) {
        atomic_store(&model->pages[i].flushed, pages[i].low);
        atomic_store(&model->pages[i].begun, pages[i].high);
        atomic_store(&model->pages[i].completed, pages[i].low);
        atomic_store(&model->pages[i].zero, pages[i].zero);
    }
    free(pages);
}

static void recover(void)
{
    int doing = atomic_load(&model->doing), pending;

    if (doing == CHECKPOINT) {
        /* The new leaf is there, whole, or not at all. */
        if (access(model->top, F_OK) == 0) {
            frozen(model->base);
            strcpy(model->leaf, model->top);
        } else {
            forget(model->base);
        }
    }
    if ((doing == MERGE || doing == DELETE_INTO_PARENT) && access(model->top, F_OK) != 0) {
        merged();
        doing = NOTHING;
    }
    pending = avhdx_resume(model->leaf, NULL, NULL);
    if (pending < 0)
        fatal("resume");
    if ((doing == MERGE || doing == DELETE_INTO_PARENT) && access(model->top, F_OK) != 0)
        merged();
    if (doing == DELETE_INTO_CHILDREN && access(model->top, F_OK) != 0)
        forget(model->top);
    open_leaf("");
    if (doing == DELETE_INTO_CHILDREN && access(model->top, F_OK) == 0) {
        /* Perhaps nobody depends on it any more. */
        uint32_t layer, n = (uint32_t)avhdx_layer_count(disk);

        for (layer = 0; layer < n && strcmp(layer_name(layer), model->top) != 0; layer++)
            ;
        if (layer == n) {
            forget(model->top);
            unlink(model->top);
        }
    }
    atomic_store(&model->doing, NOTHING);
}

static int verify(void)
{
    uint64_t before = atomic_load(&model->violations);
    uint32_t layer, n;
    struct avhdx_check seen = AVHDX_CHECK_INIT;
    avhdx_opts *opts = options("lock=off");

    recover();
    verify_leaf();
    n = (uint32_t)avhdx_layer_count(disk);
    for (layer = 1; layer + 1 < n; layer++) {
        struct slot *slot = find_slot(layer_name(layer));

        if (slot)
            verify_layer(layer, slot->pages, slot->name);
        else
            violation("an unknown layer", layer_name(layer), layer);
    }
    if (avhdx_flush(disk) < 0)
        violation("flush", model->leaf, 0);
    for (layer = 0; layer < n; layer++)
        if (avhdx_check(layer_name(layer), opts, &seen, NULL) < 0 || seen.errors != 0)
            violation("check", layer_name(layer), seen.errors);
    if (avhdx_close(disk) < 0)
        violation("close", model->leaf, 0);
    avhdx_opts_free(opts);
    return atomic_load(&model->violations) != before;
}

/* ---- the beginning ---- */

static int init(int count, char **names)
{
    unsigned char *buf = malloc(PAGE);
    avhdx_opts *opts = options("size=48M,block-size=2M");
    uint32_t i;
    int n;

    if (avhdx_create("root.vhdx", opts) < 0 || avhdx_open(&disk, "root.vhdx", NULL) < 0)
        fatal("create");
    avhdx_opts_free(opts);
    for (i = 0; i < PAGES; i += 1 + i % 3) {
        fill(buf, i, 1);
        if (avhdx_pwrite(disk, buf, PAGE, (uint64_t)i * PAGE, 0) < 0)
            fatal("write");
    }
    if (avhdx_close(disk) < 0)
        fatal("close");
    for (n = 0; n < count; n++) {
        map_model(names[n], 1);
        for (i = 0; i < PAGES; i++)
            model->numbers[i] = 1;
        for (i = 0; i < PAGES; i += 1 + i % 3) {
            atomic_store(&model->pages[i].begun, 1);
            atomic_store(&model->pages[i].completed, 1);
            atomic_store(&model->pages[i].flushed, 1);
        }
        snprintf(model->leaf, sizeof model->leaf, "%s-0.avhdx", names[n]);
        opts = options("type=differencing,parent=root.vhdx");
        if (avhdx_create(model->leaf, opts) < 0)
            fatal("create");
        avhdx_opts_free(opts);
    }
    free(buf);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";

    if (strcmp(what, "init") == 0)
        return init(argc - 2, argv + 2);
    if (argc < 3)
        return 2;
    map_model(argv[2], 0);
    if (strcmp(what, "verify") == 0)
        return verify();
    if (strcmp(what, "leaf") == 0)
        return puts(model->leaf) < 0;
    if (strcmp(what, "count") == 0)
        return printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", atomic_load(&model->operations), atomic_load(&model->changes),
                      atomic_load(&model->violations)) < 0;
    if (strcmp(what, "did") == 0 && argc > 3) {
        open_leaf("read-only");
        if (strcmp(argv[3], "merge") == 0 && avhdx_layer_count(disk) > 2)
            begin(MERGE, layer_name(0), layer_name(1));
        else
            atomic_store(&model->doing, NOTHING);
        atomic_fetch_add(&model->changes, 1);
        return atomic_load(&model->doing) != MERGE && strcmp(argv[3], "merge") == 0;
    }
    if (strcmp(what, "work") == 0 && argc > 3) {
        uint64_t seeds[THREADS + 1];
        pthread_t thread;
        int i;

        open_leaf("");
        for (i = 0; i <= THREADS; i++) {
            seeds[i] = strtoull(argv[3], NULL, 0) * THREADS + (uint64_t)i;
            if (pthread_create(&thread, NULL, i < THREADS ? work : change_layers, &seeds[i]) != 0)
                fatal("thread");
        }
        pause();
    }
    return 2;
}
