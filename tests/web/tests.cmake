include(${CMAKE_CURRENT_LIST_DIR}/page/tests.cmake)
