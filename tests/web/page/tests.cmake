# The web page in Chromium: against a mock of the server, which can be made to do anything, and against the server.
set(command ${CMAKE_CURRENT_LIST_DIR}/run.sh ${CMAKE_BINARY_DIR}/tests/web)
add_test(NAME web_page COMMAND ${command})
add_test(NAME web_page_served COMMAND ${command})
set_tests_properties(web_page web_page_served PROPERTIES LABELS web SKIP_RETURN_CODE 77 TIMEOUT 900 RESOURCE_LOCK browser)
set_tests_properties(web_page_served PROPERTIES ENVIRONMENT "IMAGE_CHAT=$<TARGET_FILE:image-chat>")
