# The web page in Chromium, against a mock of the server.
add_test(NAME web_page COMMAND ${CMAKE_CURRENT_LIST_DIR}/run.sh ${CMAKE_BINARY_DIR}/tests/web)
set_tests_properties(web_page PROPERTIES LABELS web SKIP_RETURN_CODE 77 TIMEOUT 900)
