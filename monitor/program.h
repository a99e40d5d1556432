/* SPDX-License-Identifier: MIT */
/*
 * What command handlers ask of the program they run in. Main thread.
 */
#ifndef MERINO_MONITOR_PROGRAM_H
#define MERINO_MONITOR_PROGRAM_H

/* Take no more commands and end, once the present command is answered. */
void monitor_quit(void);

#endif
