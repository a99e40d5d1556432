/* SPDX-License-Identifier: MIT */
/*
 * What connections and exports know of the server. Main thread.
 */
#ifndef MERINO_NBD_SERVER_H
#define MERINO_NBD_SERVER_H

#include "export.h"

bool nbd_server_is_running(void);
uint32_t nbd_server_max_connections(void); /* 0: no limit */

/* A connection that the server started is about to be freed. */
void nbd_server_connection_gone(NbdConnection *conn);

#endif
