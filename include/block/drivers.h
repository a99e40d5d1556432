/* SPDX-License-Identifier: MIT */
/*
 * The drivers and filters of this library, each handed to driver_register() by its own function.
 * block/builtins.c calls them all.
 */
#ifndef MERINO_BLOCK_DRIVERS_H
#define MERINO_BLOCK_DRIVERS_H

void blkdebug_driver_register(void);          /* blkdebug */
void file_drivers_register(void);             /* file, host_device */
void null_drivers_register(void);             /* null-co, null-aio */
void qcow2_driver_register(void);             /* qcow2 */
void raw_driver_register(void);               /* raw */
void copy_before_write_driver_register(void); /* copy-before-write */
void snapshot_access_driver_register(void);   /* snapshot-access */
void throttle_driver_register(void);          /* throttle */

#endif
