/* SPDX-License-Identifier: MIT */
/* What passes between client and server before requests. */
#include "nbd-harness.h"

#include <string.h>
#include <sys/socket.h>

/* Two bitmaps, disabled so that a read-only export may show them; depth is offered. */
static void set_up(void)
{
    BitmapAddOptions one = { .name = "one", .granularity = 4096, .disabled = true };
    BitmapAddOptions two = { .name = "two", .granularity = 4096, .disabled = true };
    BlockNode *disk = add_node("{'driver':'null-co','node-name':'d'}");

    bitmap_add(disk->bitmaps, &one, NULL, NULL);
    bitmap_add(disk->bitmaps, &two, NULL, NULL);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','name':'disk','description':'text',"
               "'bitmaps':['one','two'],'allocation-depth':true,'writable':true}");
    add_export("{'type':'nbd','id':'plain','node-name':'d','name':''}");
}

static void tear_down(void)
{
    stop_server();
    delete_node("d");
}

/* Receive replies up to the last, as "type:data" with numbers in hex; caller frees. */
static char *collect(Client *client, uint32_t option)
{
    GString *text = g_string_new(NULL);
    uint32_t type;

    do {
        g_autoptr(GByteArray) data = NULL;

        type = client_option_reply(client, option, &data);
        g_string_append_printf(text, "%s%x:", text->len ? " " : "", type);
        for (guint i = 0; i < data->len; i++) {
            if (g_ascii_isgraph(data->data[i]) || (type & NBD_REP_FLAG_ERROR)) {
                g_string_append_c(text, (char)data->data[i]);
            } else {
                g_string_append_printf(text, "<%x>", data->data[i]);
            }
        }
    } while (type != NBD_REP_ACK && !(type & NBD_REP_FLAG_ERROR));
    return g_string_free(text, FALSE);
}

static char *ask(Client *client, uint32_t option, const void *data, size_t length)
{
    client_option(client, option, data, length);
    return collect(client, option);
}

static char *ask_contexts(Client *client, uint32_t option, const char *name, const char *queries)
{
    g_autoptr(GByteArray) data = contexts_data(name, queries);

    return ask(client, option, data->data, data->len);
}

static void test_list(void)
{
    Client client;

    set_up();
    client_open(&client, false, false);
    assert_text(ask(&client, NBD_OPT_LIST, NULL, 0), "2:<0><0><0><4>disktext 2:<0><0><0><0> 1:");
    assert_text(ask(&client, NBD_OPT_LIST, "x", 1), "80000003:option 'list' has unexpected length");
    client_close(&client);
    tear_down();
}

static void test_refused_options(void)
{
    Client client;

    set_up();
    client_open(&client, false, false);
    assert_text(ask(&client, 77, "abcd", 4), "80000001:Unsupported option 77 (<unknown>)");
    assert_text(ask(&client, NBD_OPT_STARTTLS, NULL, 0), "80000002:TLS not configured");
    assert_text(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk", "base:allocation"),
                "80000003:request option 'set meta context' when structured reply is not "
                "negotiated");
    assert_text(ask(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0), "1:");
    assert_text(ask(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0),
                "80000003:structured reply already negotiated");
    assert_text(ask(&client, NBD_OPT_EXTENDED_HEADERS, NULL, 0), "1:");
    assert_text(ask(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0),
                "80000003:extended headers already negotiated");
    assert_text(ask(&client, NBD_OPT_EXTENDED_HEADERS, NULL, 0),
                "80000003:extended headers already negotiated");
    assert_text(ask(&client, NBD_OPT_ABORT, NULL, 0), "1:");
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void test_info(void)
{
    const uint16_t all[] = { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION,
                             NBD_INFO_BLOCK_SIZE, 99 };
    g_autoptr(GByteArray) plain = go_data("", NULL, 0);
    g_autoptr(GByteArray) full = go_data("disk", all, G_N_ELEMENTS(all));
    g_autoptr(GByteArray) missing = go_data("nope", NULL, 0);
    Client client;

    set_up();
    client_open(&client, false, false);
    assert_text(ask(&client, NBD_OPT_INFO, plain->data, plain->len),
                "3:<0><3><0><0><0><1><0><0><10><0><2><0><0><0> "
                "3:<0><0><0><0><0><0><0><10><0><0><5><f> 1:");
    assert_text(ask(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0), "1:");
    assert_text(ask(&client, NBD_OPT_INFO, full->data, full->len),
                "3:<0><1>disk 3:<0><2>text 3:<0><3><0><0><0><1><0><0><10><0><2><0><0><0> "
                "3:<0><0><0><0><0><0><0><10><0><0><d><ed> 1:");
    assert_text(ask(&client, NBD_OPT_INFO, missing->data, missing->len),
                "80000006:export 'nope' not present");
    client_close(&client);
    tear_down();
}

/* The node's alignment is the smallest block for who wants to know; others may use any. */
static void test_min_block(void)
{
    const uint16_t block_size = NBD_INFO_BLOCK_SIZE;
    g_autoptr(GByteArray) go = go_data("d", NULL, 0);
    g_autoptr(GByteArray) careful = go_data("d", &block_size, 1);
    BlockNode *disk = add_node("{'driver':'null-co','node-name':'d'}");
    Client client;

    disk->limits.request_alignment = 512;
    start_server(1, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&client, false, false);
    assert_text(ask(&client, NBD_OPT_INFO, go->data, go->len),
                "3:<0><3><0><0><2><0><0><0><10><0><2><0><0><0> "
                "3:<0><0><0><0><0><0><0><10><0><0><4><f> 1:");
    assert_text(ask(&client, NBD_OPT_GO, go->data, go->len),
                "3:<0><3><0><0><0><1><0><0><10><0><2><0><0><0> "
                "3:<0><0><0><0><0><0><0><10><0><0><4><f> 1:");
    client_close(&client);
    client_open(&client, false, false);
    assert_text(ask(&client, NBD_OPT_GO, careful->data, careful->len),
                "3:<0><3><0><0><2><0><0><0><10><0><2><0><0><0> "
                "3:<0><0><0><0><0><0><0><10><0><0><4><f> 1:");
    client_close(&client);
    tear_down();
}

static void test_listing_contexts(void)
{
    static const struct {
        const char *queries;
        const char *answer;
    } cases[] = {
        { "", "4:<0><0><0><0>base:allocation 4:<0><0><0><0>qemu:allocation-depth "
              "4:<0><0><0><0>qemu:dirty-bitmap:one 4:<0><0><0><0>qemu:dirty-bitmap:two 1:" },
        { "base:", "4:<0><0><0><0>base:allocation 1:" },
        { "qemu:", "4:<0><0><0><0>qemu:allocation-depth 4:<0><0><0><0>qemu:dirty-bitmap:one "
                   "4:<0><0><0><0>qemu:dirty-bitmap:two 1:" },
        { "qemu:dirty-bitmap:",
          "4:<0><0><0><0>qemu:dirty-bitmap:one 4:<0><0><0><0>qemu:dirty-bitmap:two 1:" },
        { "qemu:dirty-bitmap:two base:allocation",
          "4:<0><0><0><0>base:allocation 4:<0><0><0><0>qemu:dirty-bitmap:two 1:" },
        { "qemu:dirty-bitmap:on qemu:dirty-bitmap:onee qemu:dirty base other:x qemu", "1:" },
    };
    Client client;

    set_up();
    client_open(&client, false, false);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        assert_text(ask_contexts(&client, NBD_OPT_LIST_META_CONTEXT, "disk", cases[i].queries),
                    cases[i].answer);
    }
    assert_text(ask_contexts(&client, NBD_OPT_LIST_META_CONTEXT, "", ""),
                "4:<0><0><0><0>base:allocation 1:");
    assert_text(ask_contexts(&client, NBD_OPT_LIST_META_CONTEXT, "nope", ""),
                "80000006:export 'nope' not present");
    client_close(&client);
    tear_down();
}

static void test_setting_contexts(void)
{
    Client client;

    set_up();
    client_open(&client, true, false);
    assert_text(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk", ""), "1:");
    assert_text(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk", "base: qemu:"), "1:");
    assert_text(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk",
                             "qemu:dirty-bitmap:two qemu:allocation-depth base:allocation "
                             "base:allocation"),
                "4:<0><0><0><0>base:allocation 4:<0><0><0><1>qemu:allocation-depth "
                "4:<0><0><0><3>qemu:dirty-bitmap:two 1:");
    client_close(&client);
    tear_down();
}

/* Contexts belong to the export for which they were set; a later selection replaces them. */
static void test_contexts_of_another_export(void)
{
    Client client;

    set_up();
    client_open(&client, true, false);
    g_free(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk", "base:allocation"));
    client_go(&client, "", NULL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_BLOCK_STATUS, 0, 0, 4096, NULL), ==, NBD_EINVAL);
    client_close(&client);

    client_open(&client, true, false);
    g_free(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "disk", "base:allocation"));
    g_free(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "nope", "base:allocation"));
    client_go(&client, "disk", NULL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_BLOCK_STATUS, 0, 0, 4096, NULL), ==, NBD_EINVAL);
    client_close(&client);
    tear_down();
}

/* An export made anew under the same name is another one. */
static void test_contexts_of_a_former_export(void)
{
    Client client;

    set_up();
    client_open(&client, true, false);
    g_free(ask_contexts(&client, NBD_OPT_SET_META_CONTEXT, "", "base:allocation"));
    g_assert_null(delete_export_error("plain", BLOCK_EXPORT_REMOVE_MODE_SAFE));
    add_export("{'type':'nbd','id':'plain','node-name':'d','name':''}");
    client_go(&client, "", NULL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_BLOCK_STATUS, 0, 0, 4096, NULL), ==, NBD_EINVAL);
    client_close(&client);
    tear_down();
}

static void test_lengths_that_lie(void)
{
    static const struct {
        uint32_t option;
        const char *data;
        size_t length;
        const char *answer;
    } cases[] = {
        { NBD_OPT_INFO, "", 0, "80000003:Inconsistent lengths in option info" },
        { NBD_OPT_INFO, "\0\0\0\5disk", 8, "80000003:Inconsistent lengths in option info" },
        { NBD_OPT_INFO, "\0\0\0\4disk\0\2\0\0", 12,
          "80000003:Inconsistent lengths in option info" },
        { NBD_OPT_INFO, "\0\0\0\4disk\0\0\0", 11, "80000003:option 'info' has unexpected length" },
        { NBD_OPT_INFO, "\0\0\x13\x88", 4, "80000003:Invalid name length: 5000" },
        { NBD_OPT_INFO, "\0\0\0\5di\0sk\0\0", 11,
          "80000003:Unexpected embedded NUL in option info" },
        { NBD_OPT_GO, "\xff\xff\xff\xff", 4, "80000003:Invalid name length: 4294967295" },
        { NBD_OPT_LIST_META_CONTEXT, "\0\0\0\4disk\0\0\0\1", 12,
          "80000003:Inconsistent lengths in option list meta context" },
        { NBD_OPT_LIST_META_CONTEXT, "\0\0\0\4disk\0\0\0\1\xff\xff\xff\xff", 16,
          "80000003:Inconsistent lengths in option list meta context" },
        { NBD_OPT_LIST_META_CONTEXT, "\0\0\0\4disk\xff\xff\xff\xff", 12,
          "80000009:option 'list meta context' has too many queries" },
        { NBD_OPT_LIST_META_CONTEXT, "\0\0\0\4disk\0\0\0\0x", 13,
          "80000003:option 'list meta context' has unexpected length" },
        { NBD_OPT_STRUCTURED_REPLY, "x", 1,
          "80000003:option 'structured reply' has unexpected length" },
    };
    Client client;

    set_up();
    client_open(&client, false, false);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        assert_text(ask(&client, cases[i].option, cases[i].data, cases[i].length), cases[i].answer);
    }
    client_close(&client);
    tear_down();
}

/* A large option is refused but gone by; a larger one ends the connection. */
static void test_large_options(void)
{
    g_autofree char *zeroes = g_malloc0(NBD_MAX_OPTION + 1);
    uint8_t header[NBD_OPTION_BYTES];
    Client client;

    set_up();
    client_open(&client, false, false);
    assert_text(ask(&client, 77, zeroes, NBD_MAX_OPTION),
                "80000001:Unsupported option 77 (<unknown>)");
    assert_text(ask(&client, NBD_OPT_LIST, zeroes, NBD_MAX_OPTION + 1),
                "80000009:option 'list' is too long");
    assert_text(ask(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0), "1:");
    nbd_put64(header, NBD_OPTION_MAGIC);
    nbd_put32(header + 8, 77);
    nbd_put32(header + 12, NBD_MAX_OPTION_SKIP + 1);
    client_send(&client, header, sizeof(header));
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void greet(Client *client, uint32_t flags)
{
    uint8_t greeting[NBD_GREETING_BYTES], answer[NBD_CLIENT_FLAGS_BYTES];

    *client = (Client){ 0 };
    client_connect(client);
    client_recv(client, greeting, sizeof(greeting));
    nbd_put32(answer, flags);
    client_send(client, answer, sizeof(answer));
}

static void test_client_flags(void)
{
    Client client;

    set_up();
    greet(&client, 4);
    g_assert_true(at_end(&client));
    client_close(&client);
    /* Not fixed newstyle: only EXPORT_NAME is understood. */
    greet(&client, NBD_FLAG_NO_ZEROES);
    client_option(&client, NBD_OPT_LIST, NULL, 0);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void test_export_name(void)
{
    uint8_t answer[NBD_EXPORT_NAME_BYTES + NBD_EXPORT_NAME_ZEROES];
    char byte = 1;
    Client client;

    set_up();
    greet(&client, 0);
    client_option(&client, NBD_OPT_EXPORT_NAME, "disk", 4);
    client_recv(&client, answer, sizeof(answer));
    g_assert_cmphex(nbd_get64(answer), ==, 1 << 20);
    g_assert_cmphex(nbd_get16(answer + 8), ==, 0xd6d);
    client_read(&client, 0, 0, 1, &byte);
    g_assert_cmpint(byte, ==, 0);
    client_close(&client);

    greet(&client, NBD_FLAG_NO_ZEROES);
    client_option(&client, NBD_OPT_EXPORT_NAME, NULL, 0);
    client_recv(&client, answer, NBD_EXPORT_NAME_BYTES);
    g_assert_cmphex(nbd_get16(answer + 8), ==, 0x50f);
    client_close(&client);

    greet(&client, NBD_FLAG_FIXED_NEWSTYLE);
    client_option(&client, NBD_OPT_EXPORT_NAME, "nope", 4);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

static void test_wrong_magic(void)
{
    Client client;

    set_up();
    greet(&client, NBD_FLAG_FIXED_NEWSTYLE);
    client_send(&client, "GET / HTTP/1.1\r\n", 16);
    g_assert_true(at_end(&client));
    client_close(&client);
    tear_down();
}

/* A whole negotiation as one string of bytes. */
static GByteArray *whole_negotiation(void)
{
    GByteArray *bytes = g_byte_array_new();
    g_autoptr(GByteArray) set = contexts_data("disk", "base:allocation qemu:dirty-bitmap:one");
    g_autoptr(GByteArray) go = go_data("disk", NULL, 0);
    const struct {
        uint32_t option;
        const GByteArray *data;
    } options[] = {
        { NBD_OPT_STRUCTURED_REPLY, NULL },
        { NBD_OPT_LIST, NULL },
        { NBD_OPT_SET_META_CONTEXT, set },
        { NBD_OPT_INFO, go },
        { NBD_OPT_GO, go },
    };
    uint8_t header[NBD_OPTION_BYTES];

    nbd_put32(header, NBD_FLAG_FIXED_NEWSTYLE);
    g_byte_array_append(bytes, header, NBD_CLIENT_FLAGS_BYTES);
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        nbd_put64(header, NBD_OPTION_MAGIC);
        nbd_put32(header + 8, options[i].option);
        nbd_put32(header + 12, options[i].data ? options[i].data->len : 0);
        g_byte_array_append(bytes, header, sizeof(header));
        if (options[i].data) {
            g_byte_array_append(bytes, options[i].data->data, options[i].data->len);
        }
    }
    return bytes;
}

/* Whatever part of it a client sends before it goes, nothing of it stays. */
static void test_gone_at_any_byte(void)
{
    g_autoptr(GByteArray) bytes = whole_negotiation();

    set_up();
    for (guint n = 0; n <= bytes->len; n++) {
        Client client;

        client_connect(&client);
        client_send(&client, bytes->data, n);
        if (n % 3) {
            shutdown(client.fd, SHUT_WR);
            run_main_until(at_end(&client));
        } else if (n % 2) {
            run_main_once();
        }
        client_close(&client);
    }
    /* Clients of the export hold it; the last one is soon gone. */
    run_main_until(atomic_load(&export_find("e")->refs) == 1);
    tear_down();
}

/* A client that says nothing is turned away, one that has chosen is not. */
static void test_handshake_takes_too_long(void)
{
    Client silent, quick;
    char byte;

    add_node("{'driver':'null-co','node-name':'d'}");
    start_server(0, 1);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&quick, false, false);
    client_go(&quick, "d", NULL);
    greet(&silent, NBD_FLAG_FIXED_NEWSTYLE);
    g_assert_true(at_end(&silent));
    client_read(&quick, 0, 0, 1, &byte);
    client_close(&silent);
    client_close(&quick);
    tear_down();
}

/* Whoever is too many waits until somebody goes. */
static void test_max_connections(void)
{
    Client first, second, third;
    uint8_t greeting[NBD_GREETING_BYTES];

    add_node("{'driver':'null-co','node-name':'d'}");
    start_server(2, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&first, false, false);
    client_go(&first, "d", NULL);
    client_open(&second, false, false);
    client_connect(&third);
    for (int i = 0; i < 100; i++) {
        run_main_once();
    }
    g_assert_cmpint(recv(third.fd, greeting, sizeof(greeting), 0), <, 0);
    client_close(&first);
    client_recv(&third, greeting, sizeof(greeting));
    client_close(&third);
    client_close(&second);
    tear_down();
}

/* Places are taken by clients that say nothing. While others wait for one they have but a quarter
 * of their time; one that has chosen stays. */
static void test_silent_clients_make_room(void)
{
    uint8_t greeting[NBD_GREETING_BYTES];
    Client chosen, silent[3], late;
    char byte;

    add_node("{'driver':'null-co','node-name':'d'}");
    start_server(4, 4);
    add_export("{'type':'nbd','id':'e','node-name':'d'}");
    client_open(&chosen, false, false);
    client_go(&chosen, "d", NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        client_connect(&silent[i]);
        client_recv(&silent[i], greeting, sizeof(greeting));
    }
    client_open(&late, false, false);
    g_assert_cmpint(recv(silent[0].fd, greeting, 1, 0), ==, 0);
    client_go(&late, "d", NULL);
    client_read(&late, 0, 0, 1, &byte);
    client_read(&chosen, 0, 0, 1, &byte);
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        client_close(&silent[i]);
    }
    client_close(&chosen);
    client_close(&late);
    run_main_until(atomic_load(&export_find("e")->refs) == 1);
    tear_down();
}

/* Clients in the middle of negotiation do not hold the server up. */
static void test_stop_in_the_middle(void)
{
    Client client[4];

    set_up();
    for (size_t i = 0; i < G_N_ELEMENTS(client); i++) {
        client_open(&client[i], i % 2, false);
    }
    client_send(&client[1], "IHAVE", 5);
    client_go(&client[2], "disk", NULL);
    tear_down();
    for (size_t i = 0; i < G_N_ELEMENTS(client); i++) {
        g_assert_true(at_end(&client[i]));
        client_close(&client[i]);
    }
}

int main(int argc, char **argv)
{
    nbd_harness_init(&argc, &argv);
    g_test_add_func("/nbd-negotiation/list", test_list);
    g_test_add_func("/nbd-negotiation/refused-options", test_refused_options);
    g_test_add_func("/nbd-negotiation/info", test_info);
    g_test_add_func("/nbd-negotiation/min-block", test_min_block);
    g_test_add_func("/nbd-negotiation/listing-contexts", test_listing_contexts);
    g_test_add_func("/nbd-negotiation/setting-contexts", test_setting_contexts);
    g_test_add_func("/nbd-negotiation/contexts-of-another", test_contexts_of_another_export);
    g_test_add_func("/nbd-negotiation/contexts-of-a-former", test_contexts_of_a_former_export);
    g_test_add_func("/nbd-negotiation/lengths-that-lie", test_lengths_that_lie);
    g_test_add_func("/nbd-negotiation/large-options", test_large_options);
    g_test_add_func("/nbd-negotiation/client-flags", test_client_flags);
    g_test_add_func("/nbd-negotiation/export-name", test_export_name);
    g_test_add_func("/nbd-negotiation/wrong-magic", test_wrong_magic);
    g_test_add_func("/nbd-negotiation/gone-at-any-byte", test_gone_at_any_byte);
    g_test_add_func("/nbd-negotiation/handshake-takes-too-long", test_handshake_takes_too_long);
    g_test_add_func("/nbd-negotiation/max-connections", test_max_connections);
    g_test_add_func("/nbd-negotiation/silent-clients-make-room", test_silent_clients_make_room);
    g_test_add_func("/nbd-negotiation/stop-in-the-middle", test_stop_in_the_middle);
    return nbd_harness_run();
}
