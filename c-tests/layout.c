/* Sizes, offsets and constants as C sees them are those of the golden file, line for line; a Rust test says the same of
 * what Rust sees. A released line never changes. */
#include <avhdx.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static FILE *golden;
static unsigned lines, wrong;

static void line(const char *text)
{
    char wanted[256] = "";
    if (!fgets(wanted, sizeof wanted, golden))
        strcpy(wanted, "(end of file)");
    wanted[strcspn(wanted, "\n")] = 0;
    lines++;
    if (strcmp(wanted, text) != 0) {
        fprintf(stderr, "line %u: C says \"%s\", the golden file \"%s\"\n", lines, text, wanted);
        wrong++;
    }
}

static void number(const char *indent, const char *name, unsigned long long value)
{
    char text[256];
    snprintf(text, sizeof text, "%s%s %llu", indent, name, value);
    line(text);
}

#define STRUCT(name) number("struct ", #name, sizeof(struct name))
#define MEMBER(name, member) number("  ", #member, offsetof(struct name, member))
#define CONSTANT(name) number("", #name, name)

#define CALLBACK(name) STRUCT(name); MEMBER(name, fn); MEMBER(name, user); MEMBER(name, free)

int main(int argc, char **argv)
{
    char rest[16];

    if (argc != 2 || !(golden = fopen(argv[1], "r"))) {
        fprintf(stderr, "usage: %s layout.golden\n", argv[0]);
        return 2;
    }
#include "layout.inc"
    if (fgets(rest, sizeof rest, golden)) {
        fprintf(stderr, "the golden file has more lines\n");
        wrong++;
    }
    fclose(golden);
    printf("%u passed, %u failed\n", lines - wrong, wrong);
    return wrong != 0;
}
