/* The control socket: checkpoint and merge while the disk is served. */
#ifndef AVHDX_NBDKIT_CONTROL_H
#define AVHDX_NBDKIT_CONTROL_H

/* Where it is to be; 0, or -1 with the reason said. */
int control_set_path(const char *path);
/* Before nbdkit forks: binds, so that failures are seen. */
int control_bind(void);
/* After it: begins to serve. */
int control_start(void);
/* Cancels what runs, waits for it, and removes the socket. */
void control_stop(void);

#endif
