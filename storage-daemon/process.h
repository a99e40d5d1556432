/* SPDX-License-Identifier: MIT */
/*
 * The process: going to the background, and the file that names it.
 */
#ifndef MERINO_STORAGE_DAEMON_PROCESS_H
#define MERINO_STORAGE_DAEMON_PROCESS_H

#include <glib.h>
#include <stdbool.h>

/* Fork; the parent waits and exits: with success once the child calls process_detach(), with
 * failure when the child dies before. Before any thread is started. */
bool process_daemonize(GError **error);

/* In the child: cut it off from the terminal and from the folder it was started in, and let the
 * parent exit. */
bool process_detach(GError **error);

/* Write the process's number to a file, which stays locked as long as the process lives; refused
 * while another process has it locked. */
bool process_write_pidfile(const char *path, GError **error);

/* Remove the file, if it was written. */
void process_remove_pidfile(void);

#endif
