/* SPDX-License-Identifier: MIT */
/*
 * NBD in TLS: good clients get their data, and whatever others send, before, in and behind the
 * handshake, ends their own connection and nobody else's.
 */
#include "nbd-harness.h"
#include "net/tls-creds.h"
#include "tls-files.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define SIZE (8 * MiB)
#define KEY  "d543770c15ad93d76443fb56f501a31969235f47e999720ae8d2336f6a13fcbc"

static BlockNode *disk;
static char *folder;

/* --- a client in TLS --- */

typedef struct TlsClient {
    Client client; /* speaks NBD */
    gnutls_session_t tls;
    gnutls_psk_client_credentials_t creds;
} TlsClient;

static ssize_t to_errno(ssize_t ret)
{
    if (ret < 0) {
        errno = ret == GNUTLS_E_AGAIN || ret == GNUTLS_E_INTERRUPTED ? EAGAIN : EIO;
        return -1;
    }
    return ret;
}

/* GnuTLS wants the same bytes again after EAGAIN, and gets them: nobody gives up. */
static ssize_t tls_send(void *state, const void *data, size_t length)
{
    return to_errno(gnutls_record_send(state, data, length));
}

static ssize_t tls_recv(void *state, void *data, size_t length)
{
    return to_errno(gnutls_record_recv(state, data, length));
}

static const ClientLayer tls_layer = { tls_send, tls_recv };

static void ask_for_tls(Client *client)
{
    client_option(client, NBD_OPT_STARTTLS, NULL, 0);
    g_assert_cmphex(client_option_reply(client, NBD_OPT_STARTTLS, NULL), ==, NBD_REP_ACK);
}

static void make_session(TlsClient *client, const char *key, const char *version)
{
    g_autofree char *priority =
        g_strdup_printf("NORMAL:-VERS-ALL:+VERS-TLS%s:+ECDHE-PSK:+PSK", version);
    gnutls_datum_t datum = { (unsigned char *)key, (unsigned)strlen(key) };

    g_assert_cmpint(gnutls_init(&client->tls, GNUTLS_CLIENT | GNUTLS_NONBLOCK), ==, 0);
    g_assert_cmpint(gnutls_priority_set_direct(client->tls, priority, NULL), ==, 0);
    g_assert_cmpint(gnutls_psk_allocate_client_credentials(&client->creds), ==, 0);
    g_assert_cmpint(
        gnutls_psk_set_client_credentials(client->creds, "alice", &datum, GNUTLS_PSK_KEY_HEX), ==,
        0);
    gnutls_credentials_set(client->tls, GNUTLS_CRD_PSK, client->creds);
    gnutls_transport_set_int(client->tls, client->client.fd);
}

static int shake_hands(TlsClient *client)
{
    int ret;

    while ((ret = gnutls_handshake(client->tls)) < 0 && !gnutls_error_is_fatal(ret)) {
        run_main_once();
    }
    return ret;
}

static void tls_open_version(TlsClient *client, const char *version)
{
    client_greet(&client->client);
    ask_for_tls(&client->client);
    make_session(client, KEY, version);
    g_assert_cmpint(shake_hands(client), ==, 0);
    client->client.layer = &tls_layer;
    client->client.layer_state = client->tls;
    client_set_up(&client->client, true, false);
    client_go(&client->client, "d", NULL);
}

static void tls_open(TlsClient *client)
{
    tls_open_version(client, "1.3");
}

/* Gone without a word. */
static void tls_close(TlsClient *client)
{
    gnutls_deinit(client->tls);
    gnutls_psk_free_client_credentials(client->creds);
    client_close(&client->client);
}

/* Bytes past TLS, straight to the socket. */
static void send_raw(TlsClient *client, const void *data, size_t length)
{
    client->client.layer = NULL;
    client_send(&client->client, data, length);
    client->client.layer = &tls_layer;
}

/* --- a server --- */

static void set_up_limit(gconstpointer iothread, uint32_t handshake_seconds)
{
    NbdServerOptions options = { .has_handshake_max_seconds = true,
                                 .handshake_max_seconds = handshake_seconds,
                                 .tls_creds = (char *)"tls" };
    TlsCredsPskProperties properties = { .dir = folder,
                                         .has_endpoint = true,
                                         .endpoint = Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER };

    g_assert_true(tls_creds_add_psk("tls", &properties, NULL));
    disk = add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", SIZE);
    start_server_with(&options);
    add_export("{'type':'nbd','id':'e','node-name':'d','writable':true%s}",
               iothread ? ",'iothread':'io'" : "");
}

static void set_up(gconstpointer iothread)
{
    set_up_limit(iothread, 0);
}

/* A new client is served. */
static void check_health(void)
{
    TlsClient client;
    char byte;

    tls_open(&client);
    client_read(&client.client, 0, 0, 1, &byte);
    tls_close(&client);
}

static void tear_down(void)
{
    check_health();
    run_main_until(atomic_load(&export_find("e")->refs) == 1);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE));
    g_assert_false(tls_creds_delete("tls", NULL));
    stop_server();
    g_assert_true(tls_creds_delete("tls", NULL));
    delete_node("d");
}

/* --- good clients --- */

/* Pieces smaller and larger than a record, in both versions of the protocol. */
static void read_and_write(GRand *random, const char *version)
{
    g_autofree uint8_t *shadow = g_malloc0(SIZE), *data = g_malloc(SIZE);
    TlsClient client;

    tls_open_version(&client, version);
    client_read(&client.client, 0, 0, SIZE, shadow);
    for (int i = 0; i < 60; i++) {
        uint32_t length = (uint32_t)g_rand_int_range(random, 1, i % 8 ? 40000 : 2 * MiB);
        uint32_t offset = (uint32_t)g_rand_int_range(random, 0, (gint32)(SIZE - length));

        if (i % 2) {
            memset(data, i, length);
            memset(shadow + offset, i, length);
            g_assert_cmpuint(client_do(&client.client, NBD_CMD_WRITE, 0, offset, length, data), ==,
                             0);
        } else {
            client_read(&client.client, 0, offset, length, data);
            g_assert_cmpmem(data, length, shadow + offset, length);
        }
    }
    tls_close(&client);
}

static void test_data(gconstpointer iothread)
{
    GRand *random = g_rand_new_with_seed(test_seed());

    set_up(iothread);
    read_and_write(random, "1.3");
    read_and_write(random, "1.2");
    g_rand_free(random);
    tear_down();
}

/* Far more replies than the socket holds, none of which is read before all are asked for. */
static void test_full_socket(gconstpointer iothread)
{
    TlsClient client, other;
    char byte;

    set_up(iothread);
    tls_open(&client);
    for (unsigned i = 0; i < 20; i++) {
        client_request(&client.client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, i * 1000, MiB);
    }
    tls_open(&other);
    client_read(&other.client, 0, 0, 1, &byte);
    tls_close(&other);
    for (unsigned i = 0; i < 20; i++) {
        Reply reply;

        client_reply(&client.client, 0, &reply);
        g_assert_cmpuint(reply.error, ==, 0);
        g_assert_cmpuint(reply.data->len, ==, 8 + MiB);
        reply_done(&reply);
    }
    tls_close(&client);
    tear_down();
}

/* New keys, asked for by the client, between and in the middle of requests. */
static void test_key_update(gconstpointer iothread)
{
    g_autofree char *data = g_malloc0(MiB);
    TlsClient client;
    int ret;

    set_up(iothread);
    tls_open(&client);
    for (int i = 0; i < 5; i++) {
        client_request(&client.client, NBD_CMD_WRITE, 0, 1, 0, MiB);
        client_send(&client.client, data, MiB / 2);
        while ((ret = gnutls_session_key_update(client.tls, GNUTLS_KU_PEER)) == GNUTLS_E_AGAIN) {
            run_main_once();
        }
        g_assert_cmpint(ret, ==, 0);
        client_send(&client.client, data, MiB / 2);
        for (int j = 0; j < 2; j++) {
            Reply reply;

            if (j) {
                client_request(&client.client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 2, 0, MiB);
            }
            client_reply(&client.client, 0, &reply);
            g_assert_cmpuint(reply.error, ==, 0);
            reply_done(&reply);
        }
    }
    tls_close(&client);
    tear_down();
}

/* --- ends --- */

static void test_ends(gconstpointer iothread)
{
    TlsClient client;
    ssize_t ret;
    char byte;

    set_up(iothread);
    /* With a word of NBD, with a word of TLS only, and with half a request. */
    tls_open(&client);
    client_request(&client.client, NBD_CMD_DISC, 0, 1, 0, 0);
    g_assert_true(at_end(&client.client));
    tls_close(&client);
    tls_open(&client);
    gnutls_bye(client.tls, GNUTLS_SHUT_WR);
    g_assert_true(at_end(&client.client));
    tls_close(&client);
    tls_open(&client);
    client_request(&client.client, NBD_CMD_WRITE, 0, 1, 0, MiB);
    tls_close(&client);
    /* The server says goodbye, too: the end is no truncation. */
    tls_open(&client);
    client_request(&client.client, NBD_CMD_DISC, 0, 1, 0, 0);
    while ((ret = gnutls_record_recv(client.tls, &byte, 1)) == GNUTLS_E_AGAIN) {
        run_main_once();
    }
    g_assert_cmpint(ret, ==, 0);
    tls_close(&client);
    tear_down();
}

/* --- hostile ones: transmission --- */

static void test_garbage_record(gconstpointer iothread)
{
    TlsClient client;
    char byte;

    set_up(iothread);
    tls_open(&client);
    client_read(&client.client, 0, 0, 1, &byte);
    /* The header of a record, and 64 bytes that nobody has encrypted. */
    send_raw(&client,
             "\x17\x03\x03\x00\x40"
             "0123456789012345678901234567890123456789012345678901234567890123",
             69);
    g_assert_true(at_end(&client.client));
    tls_close(&client);
    /* A record longer than any may be. */
    tls_open(&client);
    send_raw(&client, "\x17\x03\x03\xff\xff", 5);
    g_assert_true(at_end(&client.client));
    tls_close(&client);
    /* No record at all. */
    tls_open(&client);
    send_raw(&client, "GET / HTTP/1.1\r\n\r\n", 18);
    g_assert_true(at_end(&client.client));
    tls_close(&client);
    tear_down();
}

/* To negotiate anew is refused. */
static void test_renegotiation(gconstpointer iothread)
{
    TlsClient client;

    set_up(iothread);
    tls_open_version(&client, "1.2");
    g_assert_cmpint(shake_hands(&client), <, 0);
    tls_close(&client);
    tear_down();
}

/* Half a record, and then nothing more; others do not wait for the rest. */
static void test_stalled_record(gconstpointer iothread)
{
    TlsClient client;

    set_up(iothread);
    tls_open(&client);
    send_raw(&client, "\x17\x03\x03\x40\x00 half a record", 19);
    check_health();
    tls_close(&client);
    tear_down();
}

/* The export goes while clients are at every point. */
static void test_export_goes(gconstpointer iothread)
{
    TlsClient idle, stalled, full;

    set_up(iothread);
    tls_open(&idle);
    tls_open(&stalled);
    send_raw(&stalled, "\x17\x03\x03\x40\x00 half a record", 19);
    tls_open(&full);
    for (unsigned i = 0; i < 8; i++) {
        client_request(&full.client, NBD_CMD_READ, NBD_CMD_FLAG_DF, i, 0, MiB);
    }
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    tls_close(&idle);
    tls_close(&stalled);
    tls_close(&full);
    stop_server();
    g_assert_true(tls_creds_delete("tls", NULL));
    delete_node("d");
}

/* --- hostile ones: negotiation --- */

static void test_plain(void)
{
    static const uint32_t refused[] = { NBD_OPT_LIST,
                                        NBD_OPT_INFO,
                                        NBD_OPT_GO,
                                        NBD_OPT_STRUCTURED_REPLY,
                                        NBD_OPT_LIST_META_CONTEXT,
                                        NBD_OPT_SET_META_CONTEXT,
                                        NBD_OPT_EXTENDED_HEADERS,
                                        4711 };
    Client client;

    set_up(NULL);
    client_greet(&client);
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(GByteArray) text = NULL;
        g_autofree char *expected =
            g_strdup_printf("Option 0x%x not permitted before TLS", refused[i]);

        client_option(&client, refused[i], "\0\0\0\1d\0\0", 7);
        g_assert_cmphex(client_option_reply(&client, refused[i], &text), ==, NBD_REP_ERR_TLS_REQD);
        g_assert_cmpmem(text->data, text->len, expected, strlen(expected));
    }
    client_option(&client, NBD_OPT_ABORT, NULL, 0);
    g_assert_cmphex(client_option_reply(&client, NBD_OPT_ABORT, NULL), ==, NBD_REP_ACK);
    g_assert_true(at_end(&client));
    client_close(&client);
    client_greet(&client);
    client_option(&client, NBD_OPT_EXPORT_NAME, "d", 1);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void test_starttls_with_data(void)
{
    Client client;

    set_up(NULL);
    client_greet(&client);
    client_option(&client, NBD_OPT_STARTTLS, "data", 4);
    g_assert_cmphex(client_option_reply(&client, NBD_OPT_STARTTLS, NULL), ==, NBD_REP_ERR_INVALID);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void test_starttls_twice(void)
{
    TlsClient client;

    set_up(NULL);
    client_greet(&client.client);
    ask_for_tls(&client.client);
    make_session(&client, KEY, "1.3");
    g_assert_cmpint(shake_hands(&client), ==, 0);
    client.client.layer = &tls_layer;
    client.client.layer_state = client.tls;
    client_option(&client.client, NBD_OPT_STARTTLS, NULL, 0);
    g_assert_cmphex(client_option_reply(&client.client, NBD_OPT_STARTTLS, NULL), ==,
                    NBD_REP_ERR_INVALID);
    client_go(&client.client, "d", NULL);
    tls_close(&client);
    tear_down();
}

/* An option in the clear right behind STARTTLS is no option. */
static void test_injected_option(void)
{
    Client client;
    uint8_t both[2 * NBD_OPTION_BYTES];

    set_up(NULL);
    client_greet(&client);
    for (int i = 0; i < 2; i++) {
        uint8_t *at = both + i * NBD_OPTION_BYTES;

        nbd_put64(at, NBD_OPTION_MAGIC);
        nbd_put32(at + 8, i ? NBD_OPT_LIST : NBD_OPT_STARTTLS);
        nbd_put32(at + 12, 0);
    }
    client_send(&client, both, sizeof(both));
    g_assert_cmphex(client_option_reply(&client, NBD_OPT_STARTTLS, NULL), ==, NBD_REP_ACK);
    /* What comes is an alert at most. */
    for (char byte, n = 0; recv(client.fd, &byte, 1, MSG_PEEK) != 0 && n < 8;) {
        if (recv(client.fd, &byte, 1, 0) == 1) {
            g_assert_true(n || byte == 0x15);
            n++;
        }
        run_main_once();
    }
    client_close(&client);
    tear_down();
}

static void test_wrong_key(void)
{
    TlsClient client;

    set_up(NULL);
    client_greet(&client.client);
    ask_for_tls(&client.client);
    make_session(&client, "00000000000000000000000000000000", "1.3");
    g_assert_cmpint(shake_hands(&client), <, 0);
    tls_close(&client);
    tear_down();
}

/* A client that stops in the handshake is turned away when its time is over; others are served
 * before. */
static void test_stalled_handshake(void)
{
    Client silent, half;

    set_up_limit(NULL, 1);
    client_greet(&silent);
    ask_for_tls(&silent);
    client_greet(&half);
    ask_for_tls(&half);
    client_send(&half, "\x16\x03\x01\x02\x00\x01\x00", 7);
    check_health();
    g_assert_true(at_end(&silent));
    g_assert_true(at_end(&half));
    client_close(&silent);
    client_close(&half);
    tear_down();
}

/* Noise where the handshake should be, of all lengths. */
static void test_garbage_handshake(void)
{
    GRand *random = g_rand_new_with_seed(test_seed());

    set_up(NULL);
    for (int i = 0; i < 30; i++) {
        uint8_t noise[4096];
        size_t length = (size_t)g_rand_int_range(random, 1, sizeof(noise));
        Client client;

        for (size_t j = 0; j < length; j++) {
            noise[j] = (uint8_t)g_rand_int(random);
        }
        if (i % 2) {
            memcpy(noise, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", MIN(length, 11));
        }
        client_greet(&client);
        ask_for_tls(&client);
        client_try_send(&client, noise, length);
        shutdown(client.fd, SHUT_WR);
        while (!at_end(&client)) {
        }
        client_close(&client);
    }
    g_rand_free(random);
    tear_down();
}

/* The server stops while clients are in the handshake, at each of its messages. */
static void test_stop(void)
{
    for (int steps = 0; steps < 40; steps++) {
        TlsClient client;

        set_up(NULL);
        client_greet(&client.client);
        ask_for_tls(&client.client);
        make_session(&client, KEY, steps % 2 ? "1.2" : "1.3");
        for (int i = 0; i < steps; i++) {
            if (gnutls_handshake(client.tls) == 0) {
                break;
            }
            run_main_once();
        }
        stop_server();
        g_assert_true(tls_creds_delete("tls", NULL));
        delete_node("d");
        tls_close(&client);
    }
}

static void add_both(const char *name, GTestDataFunc test)
{
    g_autofree char *main_loop = g_strdup_printf("/nbd-tls/%s/main-loop", name);
    g_autofree char *iothread = g_strdup_printf("/nbd-tls/%s/iothread", name);

    g_test_add_data_func(main_loop, NULL, test);
    g_test_add_data_func(iothread, "", test);
}

int main(int argc, char **argv)
{
    int ret;

    nbd_harness_init(&argc, &argv);
    folder = make_creds_folder();
    write_file(folder, "keys.psk", "alice:" KEY "\n");
    add_both("data", test_data);
    add_both("full-socket", test_full_socket);
    add_both("key-update", test_key_update);
    add_both("ends", test_ends);
    add_both("garbage-record", test_garbage_record);
    add_both("renegotiation", test_renegotiation);
    add_both("stalled-record", test_stalled_record);
    add_both("export-goes", test_export_goes);
    g_test_add_func("/nbd-tls/plain", test_plain);
    g_test_add_func("/nbd-tls/starttls-with-data", test_starttls_with_data);
    g_test_add_func("/nbd-tls/starttls-twice", test_starttls_twice);
    g_test_add_func("/nbd-tls/injected-option", test_injected_option);
    g_test_add_func("/nbd-tls/wrong-key", test_wrong_key);
    g_test_add_func("/nbd-tls/stalled-handshake", test_stalled_handshake);
    g_test_add_func("/nbd-tls/garbage-handshake", test_garbage_handshake);
    g_test_add_func("/nbd-tls/stop", test_stop);
    ret = nbd_harness_run();
    g_free(folder);
    return ret;
}
