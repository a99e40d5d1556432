/* SPDX-License-Identifier: MIT */
#include "block/builtins.h"
#include "block/drivers.h"
#include "block/nbd.h"
#include "util/event-loop.h"

void block_builtins_register(void)
{
    event_loop_main();
    blkdebug_driver_register();
    file_drivers_register();
    null_drivers_register();
    qcow2_driver_register();
    raw_driver_register();
    copy_before_write_driver_register();
    snapshot_access_driver_register();
    throttle_driver_register();
    export_driver_register(&nbd_export_driver);
}
