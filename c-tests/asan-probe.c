/* Does what a sanitizer must report. */
#include <limits.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    (void)argv;
#ifdef PROBE_OVERFLOW
    volatile char *bytes = calloc((size_t)argc, 1);
    return bytes[argc];
#else
    volatile int most = INT_MAX;
    return most + argc == 0;
#endif
}
