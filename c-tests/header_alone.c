/* The header needs nothing before it, and its macros work where structs are initialised. */
#include <avhdx.h>

int use(avhdx_disk *d);
int use(avhdx_disk *d)
{
    struct avhdx_info info;
    info.struct_size = sizeof info;
    return avhdx_get_info(d, &info);
}
