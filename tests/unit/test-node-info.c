/* SPDX-License-Identifier: MIT */
/* What queries show of a node. */
#include "graph-drivers.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/error.h"

#include <jansson.h>

#define DISK "{'driver':'null-co','node-name':'%s'}"
#define RAW  "{'driver':'raw','node-name':'%s','file':'%s'}"
#define CBW  "{'driver':'copy-before-write','node-name':'%s','file':'%s','target':'%s'}"

static void assert_info(const char *node_name, bool flat, const char *expected)
{
    GError *error = NULL;
    BlockDeviceInfo *info = node_info(node_find(node_name), flat, &error);
    json_t *got, *want = qapi_json_parse(expected, strlen(expected), &error);
    g_autofree char *text = NULL;

    g_assert_no_error(error);
    got = qapi_encode(&qapi_type_BlockDeviceInfo, info);
    text = qapi_json_text(got, true);
    if (!json_equal(got, want)) {
        g_test_message("%s", text);
        g_test_fail();
    }
    json_decref(got);
    json_decref(want);
    block_device_info_free(info);
}

static void test_plain_node(void)
{
    BlockNode *disk;
    BitmapAddOptions named = { .name = "b", .granularity = 65536, .disabled = true };
    BitmapAddOptions anonymous = { .granularity = 512 };

    disk = add_node("{'driver':'null-co','node-name':'d','size':1048576,'read-only':true,"
                    "'cache':{'direct':true},'detect-zeroes':'on'}");
    g_assert_nonnull(bitmap_add(disk->bitmaps, &named, NULL, NULL));
    g_assert_nonnull(bitmap_add(disk->bitmaps, &anonymous, NULL, NULL));
    assert_info("d", false,
                "{'node-name':'d','drv':'null-co','ro':true,'encrypted':false,"
                "'backing_file_depth':0,'detect_zeroes':'on','write_threshold':0,"
                "'bps':0,'bps_rd':0,'bps_wr':0,'iops':0,'iops_rd':0,'iops_wr':0,"
                "'cache':{'writeback':true,'direct':true,'no-flush':false},"
                "'file':'json:{\"driver\": \"null-co\", \"size\": 1048576}',"
                "'image':{'filename':'json:{\"driver\": \"null-co\", \"size\": 1048576}',"
                "'format':'null-co','virtual-size':1048576,'actual-size':0},"
                "'dirty-bitmaps':[{'count':0,'granularity':512,'recording':true,'busy':false,"
                "'persistent':false},{'name':'b','count':0,'granularity':65536,"
                "'recording':false,'busy':false,'persistent':false}]}");
    delete_all();
}

static void test_filter_shows_the_layer_below(void)
{
    BlockNode *disk = add_node(DISK, "d");
    g_autofree char *below = NULL;
    g_autofree char *image = NULL;
    g_autofree char *with = NULL;
    g_autofree char *without = NULL;
    const char *rest = "'node-name':'c','drv':'copy-before-write','ro':false,'encrypted':false,"
                       "'detect_zeroes':'off','write_threshold':0,"
                       "'bps':0,'bps_rd':0,'bps_wr':0,'iops':0,'iops_rd':0,'iops_wr':0,"
                       "'cache':{'writeback':true,'direct':false,'no-flush':false}";

    add_node(DISK, "t");
    add_node(CBW, "c", "d", "t");
    below = g_strdup_printf("{'filename':'%s','format':'null-co','virtual-size':1048576,"
                            "'actual-size':0}",
                            disk->filename);
    image = g_strdup_printf("'filename':'%s','format':'copy-before-write',"
                            "'virtual-size':1048576,'actual-size':0",
                            disk->filename);
    with = g_strdup_printf("{%s,'backing_file_depth':1,'file':'%s',"
                           "'image':{%s,'backing-image':%s}}",
                           rest, disk->filename, image, below);
    without = g_strdup_printf("{%s,'backing_file_depth':0,'file':'%s','image':{%s}}", rest,
                              disk->filename, image);
    assert_info("c", false, with);
    assert_info("c", true, without);
    delete_all();
}

static void assert_filename(const char *node_name, const char *expected)
{
    g_assert_cmpstr(node_find(node_name)->filename, ==, expected);
}

static void test_filenames(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    GError *error = NULL;

    assert_filename("d", "json:{\"driver\": \"null-co\"}");
    assert_filename("r", "json:{\"driver\": \"raw\", \"file\": {\"driver\": \"null-co\"}}");

    /* A disk with a plain name lends it to formats without options, and to filters. */
    g_free(disk->filename);
    disk->filename = g_strdup("/disk");
    reopen(&error, "[{'driver':'raw','node-name':'r','file':'d'}]");
    g_assert_no_error(error);
    assert_filename("d", "/disk");
    assert_filename("r", "/disk");
    add_node(DISK, "t");
    add_node(CBW, "c", "d", "t");
    assert_filename("c", "/disk");
    add_node(RAW, "top", "r");
    g_assert_true(g_str_has_prefix(node_find("top")->filename, "json:{"));

    /* With options, or above a filter, the name does not say enough. Users above follow. */
    reopen(&error, "[{'driver':'raw','node-name':'r','file':'c','offset':512}]");
    g_assert_no_error(error);
    g_assert_true(g_str_has_prefix(raw->filename, "json:{"));
    g_assert_nonnull(strstr(raw->filename, "\"offset\": 512"));
    g_assert_nonnull(strstr(raw->filename, "\"driver\": \"copy-before-write\""));
    g_assert_nonnull(strstr(node_find("top")->filename, "\"offset\": 512"));
    reopen(&error, "[{'driver':'raw','node-name':'r','file':'d'}]");
    g_assert_no_error(error);
    assert_filename("r", "/disk");
    g_assert_null(strstr(node_find("top")->filename, "\"offset\": 512"));
    delete_all();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/node-info/plain-node", test_plain_node);
    g_test_add_func("/node-info/filter-shows-the-layer-below", test_filter_shows_the_layer_below);
    g_test_add_func("/node-info/filenames", test_filenames);
    return g_test_run();
}
