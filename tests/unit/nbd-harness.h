/* SPDX-License-Identifier: MIT */
/*
 * For tests of the NBD server: a server on a socket in the temporary folder, exports, and a client
 * that says exactly what it is told to.
 *
 * Everything is on the main thread: whenever the client has to wait for the server, the main loop
 * and GLib's main context are run meanwhile. The client's receiving functions fail the test when
 * the stream ends; at_end() is for streams that are to end.
 */
#ifndef MERINO_TESTS_NBD_HARNESS_H
#define MERINO_TESTS_NBD_HARNESS_H

#include "block/export/nbd/protocol.h"
#include "block/nbd.h"
#include "io-harness.h"

/* io_harness_init() with disks in memory and an I/O thread `io`. */
void nbd_harness_init(int *argc, char ***argv);
int nbd_harness_run(void);

/* Events that were sent since the last call: "BLOCK_EXPORT_DELETED id ..."; caller frees. */
char *take_events(void);

void start_server(uint32_t max_connections, uint32_t handshake_seconds);
/* The same with all options but the address, which is set here. */
void start_server_with(NbdServerOptions *options);
void stop_server(void);

/* block-export-add in JSON with single quotes for double ones. */
BlockExport *add_export(const char *format, ...) G_GNUC_PRINTF(1, 2);
char *add_export_error(const char *format, ...) G_GNUC_PRINTF(1, 2);
char *delete_export_error(const char *id, BlockExportRemoveMode mode); /* NULL: it went well */

/* Run whatever is ready on the main thread. */
void run_main_once(void);
/* Run it until `condition`. */
#define run_main_until(condition)                                                                  \
    do {                                                                                           \
        while (!(condition)) {                                                                     \
            run_main_once();                                                                       \
        }                                                                                          \
    } while (0)

/* --- the client --- */

/* What lies between a client and its socket. Like send(2) and recv(2): -1 and errno, EAGAIN among
 * them. */
typedef struct ClientLayer {
    ssize_t (*send)(void *state, const void *data, size_t length);
    ssize_t (*recv)(void *state, void *data, size_t length);
} ClientLayer;

typedef struct Client {
    int fd;
    const ClientLayer *layer; /* NULL: nothing does */
    void *layer_state;
    bool structured;
    bool extended;
} Client;

typedef struct Reply {
    bool chunk;
    uint64_t cookie;
    uint32_t error; /* of a simple reply or of an error chunk */
    uint16_t flags;
    uint16_t type;
    uint64_t offset; /* extended headers */
    GByteArray *data;
} Reply;

void client_connect(Client *client);
void client_close(Client *client);
/* Greet only. */
void client_greet(Client *client);
/* Greet, and negotiate structured replies or extended headers when the fields say so. */
void client_open(Client *client, bool structured, bool extended);
/* The part of it that follows the greeting. */
void client_set_up(Client *client, bool structured, bool extended);
/* The contexts separated by spaces (or NULL), and GO. */
void client_go(Client *client, const char *name, const char *contexts);

void client_send(Client *client, const void *data, size_t length);
/* What the socket takes without waiting for the server; false when it takes nothing. */
bool client_try_send(Client *client, const void *data, size_t length);
void client_recv(Client *client, void *data, size_t length);
bool at_end(Client *client);

void client_option(Client *client, uint32_t option, const void *data, size_t length);
/* The next option reply: its type; its data to `ret_data` if that is not NULL. */
uint32_t client_option_reply(Client *client, uint32_t option, GByteArray **ret_data);
/* The data of INFO, GO and of the metadata context options. */
GByteArray *go_data(const char *name, const uint16_t *infos, uint16_t n);
GByteArray *contexts_data(const char *name, const char *contexts);

/* Bytes of a request's header in the negotiated form. */
size_t request_header(const Client *client, uint8_t *bytes, uint16_t command, uint16_t flags,
                      uint64_t cookie, uint64_t offset, uint64_t length);
void client_request(Client *client, uint16_t command, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint64_t length);
/* The next reply or chunk; `read_length` is how much data a simple reply has. */
void client_reply(Client *client, size_t read_length, Reply *ret);
void reply_done(Reply *reply);

/* A request and its only reply, which must be an error or success without data; the error. */
uint32_t client_do(Client *client, uint16_t command, uint16_t flags, uint64_t offset,
                   uint64_t length, const void *payload);
/* A read that must succeed, pieces put together. */
void client_read(Client *client, uint16_t flags, uint64_t offset, uint64_t length, void *data);

#endif
