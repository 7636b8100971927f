// The same program is C++.
#include "header.c"
