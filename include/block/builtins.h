/* SPDX-License-Identifier: MIT */
/*
 * What is built in: the one place that hands the tables of drivers, filters and exports to
 * their registries. Programs call it once, first.
 */
#ifndef MERINO_BLOCK_BUILTINS_H
#define MERINO_BLOCK_BUILTINS_H

/* Main thread; makes it the main thread. More calls do nothing. */
void block_builtins_register(void);

#endif
