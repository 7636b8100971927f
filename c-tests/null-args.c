/* Every pointer that must not be NULL is refused by name, nothing crashes, and what may be NULL may be. */
#include "check.h"

static const unsigned char id[16] = { 1 };

#define REFUSES(call, name)                                                \
    do {                                                                   \
        CHECK_FAILS(call, EINVAL, AVHDX_ERR_ARGUMENT);                     \
        CHECK_HAS(avhdx_error_message(NULL), "'" name "' is NULL");        \
    } while (0)

#define REFUSES_PTR(call, name)                                            \
    do {                                                                   \
        CHECK((call) == NULL);                                             \
        CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);             \
        CHECK_HAS(avhdx_error_message(NULL), "'" name "' is NULL");        \
    } while (0)

static void without_a_disk(void)
{
    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    struct avhdx_check seen = AVHDX_CHECK_INIT;
    avhdx_opts *o = avhdx_opts_new();
    struct avhdx_progress progress = AVHDX_PROGRESS_INIT;
    struct avhdx_pending pending = AVHDX_PENDING_INIT;
    struct avhdx_plan plan = AVHDX_PLAN_INIT;
    avhdx_disk *disk = (avhdx_disk *)1;
    avhdx_job *job = (avhdx_job *)1;
    struct avhdx_tree_node node = AVHDX_TREE_NODE_INIT;
    struct avhdx_repair repair = AVHDX_REPAIR_INIT;
    avhdx_tree *tree = (avhdx_tree *)1;
    size_t n = 0;
    const char *paths[2] = { "x", NULL };

    REFUSES(avhdx_has(NULL), "feature");
    REFUSES_PTR(avhdx_schema_json(NULL), "kind");
    REFUSES_PTR(avhdx_error_dup(NULL), "error");
    REFUSES(avhdx_opts_set_str(NULL, "search", "x"), "opts");
    REFUSES(avhdx_opts_set_str(o, NULL, "x"), "key");
    REFUSES(avhdx_opts_set_str(o, "search", NULL), "value");
    REFUSES(avhdx_opts_set_u64(NULL, "size", 1), "opts");
    REFUSES(avhdx_opts_set_u64(o, NULL, 1), "key");
    REFUSES(avhdx_opts_set_bool(NULL, "lock", 1), "opts");
    REFUSES(avhdx_opts_set_bool(o, NULL, 1), "key");
    REFUSES(avhdx_opts_parse(NULL, ""), "opts");
    REFUSES(avhdx_opts_parse(o, NULL), "line");
    REFUSES(avhdx_opts_set_resolver(NULL, NULL), "opts");
    REFUSES(avhdx_opts_set_io(NULL, NULL, NULL), "opts");
    REFUSES(avhdx_probe(NULL, &probe), "path");
    REFUSES(avhdx_probe("x", NULL), "probe");
    REFUSES(avhdx_open(NULL, "x", NULL), "disk");
    REFUSES(avhdx_open(&disk, NULL, NULL), "path");
    CHECK(disk == NULL);
    disk = (avhdx_disk *)1;
    REFUSES(avhdx_open_chain(NULL, paths, 1, NULL), "disk");
    REFUSES(avhdx_open_chain(&disk, NULL, 1, NULL), "paths");
    CHECK(disk == NULL);
    REFUSES(avhdx_open_chain(&disk, paths, 2, NULL), "paths[1]");
    CHECK_FAILS(avhdx_open_chain(&disk, paths, 0, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_open(&disk, "", NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    REFUSES(avhdx_create(NULL, NULL), "path");
    REFUSES(avhdx_merge_path(NULL, NULL, NULL, NULL), "child");
    REFUSES(avhdx_check(NULL, NULL, &seen, NULL), "path");
    REFUSES(avhdx_convert(NULL, "x", NULL, NULL), "disk");
    REFUSES(avhdx_convert(NULL, NULL, NULL, NULL), "dst");
    REFUSES(avhdx_migrate(NULL, "x", NULL, NULL), "src");
    REFUSES(avhdx_migrate("x", NULL, NULL, NULL), "dst");
    REFUSES(avhdx_check("x", NULL, NULL, NULL), "check");
    REFUSES(avhdx_job_new(NULL, NULL, "merge", NULL), "job");
    REFUSES(avhdx_job_new(&job, NULL, NULL, NULL), "operation");
    REFUSES(avhdx_job_new(&job, NULL, "merge", NULL), "disk");
    CHECK(job == NULL);
    REFUSES(avhdx_job_step(NULL, 1, NULL), "job");
    REFUSES(avhdx_job_progress(NULL, &progress), "job");
    REFUSES(avhdx_job_cancel(NULL), "job");
    REFUSES_PTR(avhdx_job_report_json(NULL), "job");
    avhdx_job_free(NULL);
    REFUSES(avhdx_plan(NULL, "merge", NULL, &plan), "disk");
    REFUSES(avhdx_plan(NULL, NULL, NULL, &plan), "operation");
    REFUSES(avhdx_plan(NULL, "merge", NULL, NULL), "plan");
    REFUSES_PTR(avhdx_plan_json(NULL, "merge", NULL), "disk");
    REFUSES(avhdx_pending(NULL, NULL, &pending), "path");
    REFUSES(avhdx_pending("x", NULL, NULL), "pending");
    REFUSES(avhdx_resume(NULL, NULL, NULL), "path");
    REFUSES(avhdx_tree_scan(NULL, paths, 1, NULL), "tree");
    REFUSES(avhdx_tree_scan(&tree, NULL, 1, NULL), "dirs");
    CHECK(tree == NULL);
    REFUSES(avhdx_tree_scan(&tree, paths, 2, NULL), "dirs[1]");
    REFUSES(avhdx_tree_count(NULL), "tree");
    REFUSES(avhdx_tree_node(NULL, 0, &node), "tree");
    REFUSES_PTR(avhdx_tree_path(NULL, 0), "tree");
    REFUSES(avhdx_tree_children(NULL, 0, NULL, &n), "tree");
    REFUSES(avhdx_tree_find(NULL, "x"), "tree");
    REFUSES(avhdx_tree_fix(NULL, 0), "tree");
    REFUSES_PTR(avhdx_tree_json(NULL), "tree");
    REFUSES(avhdx_repair(NULL, NULL, &repair, NULL), "path");
    REFUSES(avhdx_repair("x", NULL, NULL, NULL), "repair");
    REFUSES(avhdx_repair_undo(NULL, NULL, NULL), "path");
    avhdx_opts_free(o);
}

static void no_disk_at_all(void)
{
    struct avhdx_limits limits = AVHDX_LIMITS_INIT;
    struct avhdx_info info = AVHDX_INFO_INIT;
    struct avhdx_layer_info layer = AVHDX_LAYER_INFO_INIT;
    struct avhdx_extent extent;
    struct iovec iov = { NULL, 0 };
    uint64_t processed;
    size_t n = 1, room = 32;
    uint8_t digest[32];
    char byte = 0;

    REFUSES(avhdx_flush(NULL), "disk");
    REFUSES(avhdx_get_size(NULL), "disk");
    REFUSES(avhdx_get_limits(NULL, &limits), "disk");
    REFUSES(avhdx_get_info(NULL, &info), "disk");
    REFUSES(avhdx_layer_count(NULL), "disk");
    REFUSES(avhdx_layer_info(NULL, 0, &layer), "disk");
    REFUSES_PTR(avhdx_layer_path(NULL, 0), "disk");
    REFUSES(avhdx_layer_fd(NULL, 0), "disk");
    REFUSES_PTR(avhdx_info_json(NULL), "disk");
    REFUSES(avhdx_pread(NULL, &byte, 1, 0), "disk");
    REFUSES(avhdx_pwrite(NULL, &byte, 1, 0, 0), "disk");
    REFUSES(avhdx_preadv(NULL, &iov, 1, 0), "disk");
    REFUSES(avhdx_pwritev(NULL, &iov, 1, 0, 0), "disk");
    REFUSES(avhdx_layer_pread(NULL, 0, &byte, 1, 0), "disk");
    REFUSES(avhdx_zero(NULL, 0, 1, 0), "disk");
    REFUSES(avhdx_discard(NULL, 0, 1, 0), "disk");
    REFUSES(avhdx_block_status(NULL, 0, 1, 0, &extent, &n, &processed), "disk");
    REFUSES(avhdx_checkpoint(NULL, "x", NULL), "disk");
    REFUSES(avhdx_merge(NULL, 0, 1, NULL, NULL), "disk");
    REFUSES(avhdx_diff(NULL, 0, 1, 0, 1, 0, &extent, &n, &processed), "disk");
    REFUSES(avhdx_compare(NULL, NULL, 0, NULL, NULL, NULL), "a");
    REFUSES(avhdx_digest(NULL, 0, "sha256", digest, &room, NULL, NULL), "disk");
    REFUSES(avhdx_revert(NULL, 1, "x", NULL), "disk");
    REFUSES(avhdx_delete_layer(NULL, 1, NULL, NULL), "disk");
    REFUSES(avhdx_delete_branch(NULL, "x"), "disk");
    REFUSES(avhdx_rebase(NULL, "x", NULL, NULL), "disk");
    REFUSES(avhdx_detach(NULL, NULL, NULL), "disk");
    REFUSES(avhdx_reparent(NULL, "x", NULL), "child");
    REFUSES(avhdx_reparent("x", NULL, NULL), "parent");
    REFUSES(avhdx_compact(NULL, NULL, NULL), "disk");
    REFUSES(avhdx_resize(NULL, 512, NULL), "disk");
    REFUSES(avhdx_min_size(NULL, &processed), "disk");
    REFUSES(avhdx_set_physical_sector_size(NULL, 512), "disk");
    REFUSES(avhdx_reset_disk_id(NULL, NULL), "disk");
    REFUSES_PTR(avhdx_meta_list(NULL), "disk");
    REFUSES(avhdx_meta_get(NULL, id, &byte, 1), "disk");
    REFUSES(avhdx_meta_set(NULL, id, &byte, 1, 0), "disk");
    REFUSES(avhdx_meta_delete(NULL, id), "disk");
}

static void with_a_disk(void)
{
    struct avhdx_extent extent;
    struct iovec iov = { NULL, 512 };
    uint8_t byte = 0;
    uint64_t processed;
    size_t n = 1;
    avhdx_disk *disk;

    NEED(create(tmp("d.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    REFUSES(avhdx_get_limits(disk, NULL), "limits");
    REFUSES(avhdx_min_size(disk, NULL), "size");
    REFUSES(avhdx_meta_get(disk, NULL, NULL, 0), "id");
    REFUSES(avhdx_meta_get(disk, id, NULL, 1), "buf");
    REFUSES(avhdx_meta_set(disk, NULL, NULL, 0, 0), "id");
    REFUSES(avhdx_meta_set(disk, id, NULL, 1, 0), "buf");
    REFUSES(avhdx_meta_delete(disk, NULL), "id");
    REFUSES(avhdx_get_info(disk, NULL), "info");
    REFUSES(avhdx_layer_info(disk, 0, NULL), "info");
    REFUSES(avhdx_pread(disk, NULL, 1, 0), "buf");
    REFUSES(avhdx_pwrite(disk, NULL, 1, 0, 0), "buf");
    REFUSES(avhdx_preadv(disk, NULL, 1, 0), "iov");
    REFUSES(avhdx_pwritev(disk, NULL, 1, 0, 0), "iov");
    REFUSES(avhdx_preadv(disk, &iov, 1, 0), "iov[0].iov_base");
    REFUSES(avhdx_pwritev(disk, &iov, 1, 0, 0), "iov[0].iov_base");
    REFUSES(avhdx_layer_pread(disk, 0, NULL, 1, 0), "buf");
    REFUSES(avhdx_block_status(disk, 0, 1, 0, NULL, &n, &processed), "extents");
    REFUSES(avhdx_block_status(disk, 0, 1, 0, &extent, NULL, &processed), "n");
    REFUSES(avhdx_block_status(disk, 0, 1, 0, &extent, &n, NULL), "processed");
    REFUSES(avhdx_checkpoint(disk, NULL, NULL), "new_leaf");
    REFUSES(avhdx_diff(disk, 0, 1, 0, 1, 0, NULL, &n, &processed), "extents");
    REFUSES(avhdx_diff(disk, 0, 1, 0, 1, 0, &extent, NULL, &processed), "n");
    REFUSES(avhdx_diff(disk, 0, 1, 0, 1, 0, &extent, &n, NULL), "processed");
    REFUSES(avhdx_compare(disk, NULL, 0, NULL, NULL, NULL), "b");
    CHECK_OK(avhdx_compare(disk, disk, 0, NULL, NULL, NULL));
    REFUSES(avhdx_digest(disk, 0, NULL, &byte, &n, NULL, NULL), "algo");
    REFUSES(avhdx_digest(disk, 0, "sha256", NULL, &n, NULL, NULL), "out");
    REFUSES(avhdx_digest(disk, 0, "sha256", &byte, NULL, NULL, NULL), "len");
    REFUSES(avhdx_revert(disk, 1, NULL, NULL), "new_leaf");
    REFUSES(avhdx_delete_branch(disk, NULL), "root");
    REFUSES(avhdx_rebase(disk, NULL, NULL, NULL), "new_parent");
    /* No bytes, no buffer. */
    CHECK_OK(avhdx_pread(disk, NULL, 0, 0));
    CHECK_OK(avhdx_pwrite(disk, NULL, 0, 0, 0));
    CHECK_OK(avhdx_preadv(disk, NULL, 0, 0));
    CHECK_OK(avhdx_pwritev(disk, NULL, 0, 0, AVHDX_FUA));
    CHECK_OK(avhdx_close(disk));
}

static void null_is_nothing_to_free(void)
{
    CHECK_OK(avhdx_close(NULL));
    avhdx_abort(NULL);
    avhdx_opts_free(NULL);
    avhdx_error_free(NULL);
    avhdx_free(NULL);
    avhdx_tree_free(NULL);
    CHECK_OK(avhdx_set_log(NULL, 0));
}

static void structures_nobody_initialised(void)
{
    struct avhdx_probe probe;

    memset(&probe, 0, sizeof probe);
    CHECK_FAILS(avhdx_probe(tmp("d.vhdx"), &probe), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "probe->struct_size is 0");
    memset(&probe, 0xff, sizeof probe);
    CHECK_FAILS(avhdx_probe(tmp("d.vhdx"), &probe), EINVAL, AVHDX_ERR_ARGUMENT);
}

int main(void)
{
    RUN(without_a_disk);
    RUN(no_disk_at_all);
    RUN(with_a_disk);
    RUN(null_is_nothing_to_free);
    RUN(structures_nobody_initialised);
    return check_end();
}
