/* Files are found with their parents wherever they lie; what is wrong is said. */
#include "check.h"

static avhdx_tree *scan(const char *dir, const char *line)
{
    avhdx_opts *o = opts(line);
    avhdx_tree *tree;
    int r = avhdx_tree_scan(&tree, &dir, 1, o);

    avhdx_opts_free(o);
    return r == 0 ? tree : NULL;
}

static void family(void)
{
    NEED(mkdir(tmp("vm"), 0700) == 0 && mkdir(tmp("vm/old"), 0700) == 0);
    NEED(create(tmp("vm/base.vhdx"), "size=16M,block-size=1M") == 0);
    {
        avhdx_disk *disk = open_with(tmp("vm/base.vhdx"), "");
        NEED(disk != NULL);
        NEED(avhdx_checkpoint(disk, tmp("vm/a.avhdx"), NULL) == 0);
        NEED(avhdx_checkpoint(disk, tmp("vm/b.avhdx"), NULL) == 0);
        NEED(avhdx_close(disk) == 0);
    }
}

static void edges_roles_and_problems(void)
{
    struct avhdx_tree_node node = AVHDX_TREE_NODE_INIT;
    uint32_t children[4];
    avhdx_tree *tree;
    int64_t base, a, b;
    size_t n;
    char *json;

    NEED((tree = scan(tmp("vm"), "")) != NULL);
    CHECK_INT(avhdx_tree_count(tree), 3);
    base = avhdx_tree_find(tree, tmp("vm/base.vhdx"));
    a = avhdx_tree_find(tree, tmp("vm/./old/../a.avhdx"));
    b = avhdx_tree_find(tree, tmp("vm/b.avhdx"));
    NEED(base >= 0 && a >= 0 && b >= 0);
    CHECK_OK(avhdx_tree_node(tree, (uint32_t)base, &node));
    CHECK_INT(node.struct_size, sizeof node);
    CHECK_INT(node.role, AVHDX_ROLE_BASE);
    CHECK_INT(node.type, AVHDX_TYPE_DYNAMIC);
    CHECK_INT(node.parent, AVHDX_NO_NODE);
    CHECK_INT(node.child_count, 1);
    CHECK_INT(node.virtual_size, 16 * MIB);
    CHECK(node.file_size >= MIB && node.modified > 0);
    CHECK_OK(avhdx_tree_node(tree, (uint32_t)b, &node));
    CHECK_INT(node.role, AVHDX_ROLE_LEAF);
    CHECK_INT(node.parent, a);
    CHECK_INT(node.depth, 3);
    CHECK_INT(node.problems, 0);
    CHECK_INT(node.flags, AVHDX_INFO_HAS_PARENT);
    CHECK_STR(avhdx_tree_path(tree, (uint32_t)a), tmp("vm/a.avhdx"));
    n = 4;
    CHECK_OK(avhdx_tree_children(tree, AVHDX_NO_NODE, children, &n));
    CHECK(n == 1 && children[0] == base);
    CHECK_OK(avhdx_tree_children(tree, (uint32_t)base, children, &n));
    CHECK(n == 1 && children[0] == a);
    n = 0;
    CHECK_OK(avhdx_tree_children(tree, (uint32_t)a, NULL, &n));
    CHECK_INT(n, 1);
    CHECK_INT(avhdx_tree_find(tree, "/nowhere"), -ENOENT);
    CHECK_FAILS(avhdx_tree_node(tree, 3, &node), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(avhdx_tree_path(tree, AVHDX_NO_NODE) == NULL);
    CHECK((json = avhdx_tree_json(tree)) != NULL);
    CHECK_HAS(json, "\"role\":\"checkpoint\"");
    avhdx_free(json);
    avhdx_tree_free(tree);
    /* Moved, and a part missing. */
    NEED(rename(tmp("vm/a.avhdx"), tmp("vm/old/a.avhdx")) == 0);
    NEED((tree = scan(tmp("vm"), "")) != NULL);
    b = avhdx_tree_find(tree, tmp("vm/b.avhdx"));
    CHECK_OK(avhdx_tree_node(tree, (uint32_t)b, &node));
    CHECK_INT(node.problems, AVHDX_PROBLEM_STALE_PATH);
    CHECK_INT(node.depth, 3);
    avhdx_tree_free(tree);
    NEED((tree = scan(tmp("vm"), "recurse=off")) != NULL);
    CHECK_INT(avhdx_tree_count(tree), 2);
    CHECK_OK(avhdx_tree_node(tree, (uint32_t)avhdx_tree_find(tree, tmp("vm/b.avhdx")), &node));
    CHECK_INT(node.role, AVHDX_ROLE_ORPHAN);
    CHECK_INT(node.problems, AVHDX_PROBLEM_MISSING_PARENT);
    avhdx_tree_free(tree);
}

static int fix(const char *dir, const char *file, const char *line)
{
    avhdx_tree *tree = scan(dir, line);
    int r;

    NEED(tree != NULL);
    r = avhdx_tree_fix(tree, (uint32_t)avhdx_tree_find(tree, file));
    avhdx_tree_free(tree);
    return r;
}

/* The parent of b has moved to old/. */
static void stale_paths_are_fixed(void)
{
    const char *vm = tmp("vm"), *b = tmp("vm/b.avhdx");
    unsigned char byte = 1;
    avhdx_disk *disk;
    avhdx_tree *tree;
    int64_t node;

    CHECK_FAILS(fix(vm, b, "read-only"), EROFS, AVHDX_ERR_READ_ONLY);
    NEED((disk = open_with(b, "search=/nonexistent,parents=off,read-only")) != NULL);
    CHECK_FAILS(fix(vm, b, ""), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK_STR(avhdx_error_path(NULL), b);
    CHECK_OK(avhdx_close(disk));
    CHECK(open_with(b, "") == NULL);
    CHECK_INT(fix(vm, b, ""), 1);
    CHECK_INT(fix(vm, b, ""), 0);
    CHECK_INT(fix(vm, tmp("vm/base.vhdx"), ""), 0);
    NEED((disk = open_with(b, "")) != NULL);
    CHECK_INT(avhdx_layer_count(disk), 3);
    CHECK_OK(avhdx_close(disk));

    /* The parent becomes another disk after the scan. */
    NEED(rename(tmp("vm/old/a.avhdx"), tmp("vm/a.avhdx")) == 0);
    NEED((tree = scan(vm, "")) != NULL);
    NEED((disk = open_with(tmp("vm/a.avhdx"), "")) != NULL);
    NEED(avhdx_pwrite(disk, &byte, 1, 0, 0) == 0 && avhdx_close(disk) == 0);
    NEED((node = avhdx_tree_find(tree, b)) >= 0);
    CHECK_FAILS(avhdx_tree_fix(tree, (uint32_t)node), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
    CHECK_FAILS(avhdx_tree_fix(tree, 3), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_tree_fix(tree, AVHDX_NO_NODE), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_tree_free(tree);
}

static void unusable(void)
{
    avhdx_tree *tree = (avhdx_tree *)1;
    const char *dirs[1];
    avhdx_opts *o = opts("recurse=off,mode=copy");

    dirs[0] = "/nowhere/at/all";
    CHECK_INT(avhdx_tree_scan(&tree, dirs, 1, NULL), -ENOENT);
    CHECK(tree == NULL);
    CHECK_FAILS(avhdx_tree_scan(&tree, dirs, 0, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_tree_scan(&tree, dirs, 1, o), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "mode");
    avhdx_opts_free(o);
}

int main(void)
{
    family();
    RUN(edges_roles_and_problems);
    RUN(stale_paths_are_fixed);
    RUN(unusable);
    return check_end();
}
