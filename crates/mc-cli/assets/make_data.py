# Writes data/train.jsonl and data/valid.jsonl: plain-English requests and the shell command that answers each.
# Run with: python3 make_data.py   (Python 3.9 or later, standard library only)
#
# Every request was written by hand for this project. Of each command's requests the last one or two are held out
# (after the bar, `|`), so no request of valid.jsonl is one of train.jsonl; the commands are the same. A request with
# slots, such as {n} or {file}, is filled from short lists, the held-out ones on their own: a few of their answers put
# together values that train.jsonl has only apart.
# Commands are those that behave alike on Linux and macOS; `rm` asks first.

import json
import random
import re
from pathlib import Path

SEED = 0
ARROW = " =>"  # ends every prompt; the completion starts with a space, so tokens never straddle the two

PLAIN = """
ls
List the files in this folder
Show me what is in the current directory
What files are here?
Give me the names of the files in this directory
See the contents of this folder
Print the files in the current folder
What is inside this directory?
List the files
Show the names of everything in this directory
| List what the current folder contains
| Which files are in this directory?

ls -a
List all files, including hidden ones
Show hidden files too
I want to see the dotfiles as well
List everything here, even hidden files
Display hidden and normal files
What hidden files are in this folder?
Include the hidden files in the listing
Show all files, the ones starting with a dot too
List the dotfiles along with the rest
| Let me see every file, also the hidden ones

ls -lh
List files with their sizes in human-readable form
Show a long listing with readable sizes
Show the permissions and sizes of the files here
Give me a detailed listing of this folder
Long list of the files, with sizes I can read
Show file details: owner, permissions and size
I need a detailed list of the files
List files with details and human-readable sizes
Long listing of this directory, sizes in K and M
| Give a long, detailed file listing with readable sizes

ls -lt
List files by modification time, newest first
Show the most recently changed files first
Sort the listing by date
Which files were modified last?
Order the files here by time, newest at the top
Show the newest files first in a long listing
List the files sorted by when they changed
Sort files by modification date
List the latest modified files first
| Put the most recently modified files at the top of the listing

ls -lS
List the files sorted by size
Show the largest files first
Order the listing by file size
Which files here are the biggest?
Sort files from large to small
Put the biggest files at the top of the list
List this folder with the largest file first
Sort this folder by file size
Long listing with the biggest files first
| Show files in order of size, biggest first

pwd
Where am I?
Print the current directory
Show the path of the current folder
Which directory am I in?
What is my working directory?
Tell me the full path of this folder
Print the working directory
Print the path of where I am
Show me which folder I am in
| What folder am I in right now?

cd ..
Go up one directory
Move to the parent folder
Change to the parent directory
Go one level up
Leave this folder and go to the one above
Step up to the parent directory
Take me up one folder
Go to the parent directory
Leave this directory, one level up
| Move up one level to the parent

cd -
Go back to the previous directory
Return to the folder I was in before
Switch back to the last directory
Take me back to the previous folder
Change to the directory I was in last
Jump back to where I was before
Return to the previous working directory
Go back to the last directory
Switch to the previous folder
| Go back to the folder I was in previously

cd ~
Go to my home directory
Change to the home folder
Take me home
Switch to my home folder
Move to the home directory
Jump to my home directory
Go home
Take me to my home folder
Go back home
| Change directory to my home

df -h
How much disk space is left?
Show free disk space
Display disk usage of all file systems
How full is my disk?
Check the available space on the disks
Is there any space left on the drive?
Report the free space on each mounted disk
Free disk space, please
Show how much space is free on the disks
| How much free space do my disks have?

du -sh .
How big is this folder?
Show the total size of the current directory
What is the size of this directory?
How much space does this folder take?
Total disk usage of the current folder
Sum up the size of everything in this folder
Tell me how large the current directory is
Show the size of this folder
How large is this folder in total?
| What is the total size of this folder?

du -sh *
Show the size of every item in this folder
How big is each file and folder here?
List the size of each subdirectory
Sizes of all the folders in this directory
What does each item here take on disk?
Print the size of each thing in this folder
Disk usage of each file and folder
How much space does each folder here take?
Show the sizes of all files and folders here
| Give me the size of each folder and file here

uname -a
Show the kernel version
Which operating system is this?
Print system information
What kernel am I running?
Tell me about this system: name, kernel and machine
Show the name and version of the operating system
Print all the system information
What version of the operating system is this?
Show the system name and the kernel version
| Which kernel version does this system run?

whoami
Who am I logged in as?
Print my user name
What is my username?
Show the current user
Which user am I?
Tell me the name of my account
Display the name of the current user
What is my user name?
Show the name of the user I am logged in as
| Under which user name am I logged in?

hostname
What is the name of this computer?
Print the host name
Show this machine's name
What is this computer called?
Which host am I on?
Tell me the hostname
Name of this machine
What is the name of this machine?
Display the name of this computer
| Print the name of this computer

date
What time is it?
Show the current date and time
Print today's date
What day is it today?
Tell me the time
Display the date
Current time, please
Show the date
What is the date today?
| Show today's date and the time

cal
Show a calendar
Print this month's calendar
Display the calendar of the current month
I want to see a calendar
Calendar for this month
Show me the month as a calendar
Give me a calendar
Show this month's calendar
The days of this month, as a calendar
| Print a calendar of this month

uptime
How long has this machine been running?
Show the uptime
When was the computer last booted?
How long has the system been up?
Print the load average and uptime
Time since the last boot
Tell me how long the computer has been on
How long is this computer running already?
Show how long the machine has been up
| How long has this computer been up?

ps aux
List all running processes
Show every process on the system
What processes are running?
Show the running programs of all users
Display all processes
Which programs are running right now?
Print a list of all the processes
Show all the running processes
List every process of every user
| Show me all processes that are running

top
Watch processes live
Show CPU usage in real time
Which process is using the most CPU right now?
Monitor the system live
Open the live process monitor
Keep watching the CPU and memory usage
Live view of the busiest processes
Show the processes live, sorted by CPU
Watch the CPU usage of the processes
| Monitor CPU use of processes live

jobs
List the background jobs of this shell
Show jobs running in the background
Which jobs did I suspend?
What is running in the background of this shell?
Print the jobs of this shell
See my background jobs
Show the stopped and background jobs
Show the background jobs
Which jobs are running in this shell?
| Which background jobs does this shell have?

env
Show all environment variables
Print the environment
List my environment variables
What environment variables are set?
Display the whole environment
Dump the environment variables
See every environment variable
Which environment variables do I have?
Print all variables of the environment
| Which environment variables are defined?

echo $PATH
Print the PATH variable
Show my search path for programs
What is in my PATH?
Display the value of PATH
Which directories are searched for commands?
Show the PATH
Tell me what PATH is set to
Print my PATH
In which folders does the shell look for programs?
| What does my PATH variable contain?

echo $SHELL
Which shell am I using?
Print the name of my shell
What is my default shell?
Show the login shell
Tell me which shell this is
Display my shell
What shell do I have?
Show which shell I use
What is the default shell of my account?
| Which shell is my default?

history
Show the commands I typed before
Print my command history
List my previous commands
What commands did I run earlier?
Display the history of commands
See the commands I used recently
Show the shell history
Show the history of my commands
Which commands did I type earlier?
| List the commands that I ran before

clear
Clear the screen
Wipe the terminal
Empty the terminal window
Clean up the screen
Make the terminal blank
Clear my terminal
Erase everything on the screen
Clear this terminal window
Make the screen empty
| Wipe the screen clean

id
Show my user and group ids
Which groups am I in?
Print my user id
What is my uid?
Display the ids of my user and groups
List the groups I belong to
Tell me my uid and gid
Show my user id and my groups
What are my user and group ids?
| Print the user id and the groups I am in

git status
Show the state of the repository
What has changed in my working tree?
Which files are modified or untracked in git?
Check the git status
Are there uncommitted changes?
See what is staged and what is not
State of my git working tree
Show which files are modified in the repository
Is my working tree clean?
| Check the repository for modified and untracked files

git diff
Show my unstaged changes
What did I change since the last commit?
Display the differences in the working tree
Show the diff of what is not staged
See the lines that I changed
Print my changes as a diff
Compare my working tree with the index
Show the changes that are not staged
What are my unstaged changes?
| Display a diff of the unstaged changes

git diff --staged
Show the staged changes
What is going to be in the next commit?
Diff of what I have staged
Display the staged diff
See what is staged for the commit
Show the differences that are already added to the index
Review the staged changes before committing
Which changes are staged?
Show the diff of the staged files
| Print a diff of what is staged

git log --oneline
Show the commit history, one line each
List commits briefly
Print a short git log
One-line summary of every commit
Show a compact commit log
Give me the history of commits in short form
List the commits, one per line
Show the git log in one line per commit
List all commits in short form
| Display the git history with one line per commit

git log --graph --oneline --all
Draw the commit graph of all branches
Show the history of every branch as a graph
Graph of the commits
Display a graph of all git branches
Print the commit tree of all branches
Show how the branches join, as a graph
See the branch graph
Show the commit history as a graph, all branches
Draw all the branches as a graph
| Show a graph of the commits on all branches

git branch
List my git branches
Which branches do I have?
Show local branches
What branch am I on?
Print the names of the local branches
See the git branches
Display all local branches
Show the branches of this repository
List the local branches
| Show the names of my git branches

git branch -a
List all branches, remote ones too
Show local and remote branches
Print every branch, including remote branches
Which branches exist here and on the remote?
Display the remote branches as well
See all branches, local and remote
Include remote branches in the branch list
List the remote branches too
Print all the local and remote branches
| Show every branch, also those on the remote

git add .
Stage everything
Add all changes to the index
Stage all my changes for commit
Add every changed file in this folder to git
Put all changes into the index
Stage the whole folder
Add everything to the next commit
Stage all files
Add all the changed files
| Stage all changed files

git commit
Commit the staged changes
Make a commit
Record what is staged as a commit
Create a commit and write its message in the editor
Commit what I have added
Save the staged changes in a commit
Make a new commit of the staged files
Commit my staged changes
Create a commit
| Create a new commit from what is staged

git commit --amend
Change the last commit
Fix the message of the last commit
Amend the previous commit
Edit my last commit message
Add the staged changes to the last commit
Rewrite the most recent commit
Correct the last commit
Change the message of the last commit
Amend my last commit
| Amend the most recent commit

git pull
Get the latest changes from the remote
Pull from the remote repository
Update my branch from the remote
Fetch and merge the remote changes
Bring my branch up to date with the server
Download and merge the newest commits
Pull the latest commits
Pull the newest changes
Merge the latest remote changes into my branch
| Update this branch with the latest remote commits

git push
Upload my commits
Push my branch to the remote
Send my commits to the server
Publish my commits to the remote repository
Push the commits
Send my work to the remote
Upload this branch to the remote
Push to the remote
Upload my commits to the server
| Push my commits to the server

git fetch
Download remote changes without merging
Fetch from the remote, but do not merge
Get the remote's commits and leave my branch alone
Only fetch the remote commits
Update the remote branches without touching mine
Download new commits but do not merge them
Fetch new commits from the server
Fetch the remote commits only, no merge
Download from the remote without merging
| Fetch the remote changes without merging them

git stash
Put my changes aside for now
Stash my work
Save my uncommitted changes for later
Set the uncommitted changes aside
Shelve what I am working on
Hide my local changes for the moment
Stash the changes in the working tree
Stash my changes
Put my uncommitted work aside
| Set my work aside and stash it

git stash pop
Bring back my stashed changes
Restore the stash
Apply the last stash and drop it
Get my stashed work back
Take the changes out of the stash
Pop the stash
Return the stashed changes to my working tree
Restore my stashed work
Bring the stash back
| Restore the changes that I stashed

git remote -v
Show the remote repositories
Which remotes does this repository have?
Print the URLs of the remotes
Where does this repository push to?
List the git remotes with their addresses
What is the remote URL?
Display the remotes and their URLs
Show the URLs of the remotes
Print the remotes and their addresses
| List the URLs of my git remotes

git blame README.md
Who changed each line of README.md?
Show who wrote every line of README.md
Blame README.md
See the author of each line in README.md
Annotate README.md with authors
Who last touched each line of README.md?
Print the author of every line in README.md
Which author changed each line of README.md?
Who wrote every line of README.md?
| Which author wrote each line of README.md?

git tag
List the tags
Which tags does this repository have?
Show all git tags
Print the release tags
Display the tags of this repository
See the tags
What tags are there?
Show me the tags
List all tags of this repository
| Show the names of all tags

cargo build
Build this project
Compile the crate
Compile my Rust code
Build the Rust package
Run the compiler on this package
Make a debug build
Build the crate with cargo
Compile this crate
Build my Rust project
| Compile this Rust project

cargo build --release
Make an optimized build
Build in release mode
Compile with optimizations
Build the release version of this crate
Produce a release binary
Compile the project for release
I want a fast, optimized build
Compile this in release mode
Build an optimized binary
| Compile the crate in release mode with optimizations

cargo run
Run this program
Build and run the project
Start my Rust program
Execute the main binary
Compile and start the program
Run the binary with cargo
Launch this crate's program
Start this Rust project
Run my Rust program
| Build my program and run it

cargo test
Run the tests
Test this crate
Run all unit tests
Check that the tests pass
Execute the test suite
Do the tests of this project pass?
Start the tests with cargo
Run all tests of this crate
Run my tests
| Run this project's test suite

cargo check
Check that the code compiles without building it
Type-check the crate
Look for compile errors quickly
Does my code compile? Do not build it
Check the package for errors without producing a binary
Quickly check for type errors
Verify that it compiles, without code generation
Check for compile errors only
Check the code, but do not build a binary
| Check the crate for compile errors, but do not build

cargo fmt
Format the source code
Run the formatter
Format my Rust files
Fix the code style with rustfmt
Reformat the whole crate
Tidy up the formatting
Apply rustfmt to the project
Format this crate's code
Format all the source files
| Format all Rust code in the crate

cargo clippy
Lint the code
Run the linter
Run clippy on this crate
Look for common mistakes with lints
Show lint warnings
Check my code with clippy
Give me the lints for this project
Check this crate with the linter
Run all lints
| Run the lints on my code

cargo doc --open
Build the documentation and open it
Open the docs of this crate in the browser
Generate the docs and show them
Make the API documentation and open it
Read the documentation of my crate in a browser
Build and view the docs
Create the documentation, then open it
Open the documentation of this crate
Build the docs and open them in the browser
| Generate the documentation and open it in a browser

cargo update
Update the dependencies
Bring Cargo.lock up to date
Upgrade dependencies to the newest compatible versions
Refresh the lock file
Update the crates in Cargo.lock
Get newer versions of my dependencies
Update all dependencies
Upgrade the dependencies of this crate
Update the versions in the lock file
| Upgrade the dependencies in the lock file

cargo tree
Show the dependency tree
Print the tree of dependencies
Which crates do I depend on?
List dependencies as a tree
Display all dependencies of this crate
See the graph of crates that I depend on
What does this package depend on?
Show my dependencies as a tree
Print which crates this crate depends on, as a tree
| Display the tree of crates that this one depends on

cargo clean
Remove the build artifacts
Clean the target directory
Delete compiled files of this project
Throw away the build output
Clean the build
Empty the target folder
Get rid of everything cargo built
Delete the target directory
Remove all compiled files
| Remove everything in the target directory

cargo bench
Run the benchmarks
Benchmark this crate
Execute all benchmarks
Measure performance with the benches
Start the benchmarks
Run the bench targets
How fast is it? Run the benchmarks
Run all the benchmarks of this crate
Run this project's benches
| Execute this project's benchmarks

rustup update
Update Rust
Upgrade the Rust toolchain
Get the latest version of the compiler
Install the newest Rust release
Update rustc and cargo
Bring my toolchain up to date
Update the installed toolchains
Update my Rust installation
Upgrade Rust and cargo
| Upgrade Rust to the latest version

rustc --version
Which version of Rust do I have?
Print the compiler version
Show the version of rustc
What rustc is installed?
Tell me the Rust version
Check the version of the compiler
Display the installed Rust version
Print the version of Rust
Which rustc version is this?
| What version of the Rust compiler is installed?

find . -empty
Find empty files and folders
Which files here are empty?
List everything that is empty
Look for empty files
Show all empty directories and files
Search for files with nothing in them
Find the empty files under this folder
List the empty files and directories
Find everything that is empty here
| Search this folder for empty files

find . -type d
List all directories below this one
Find every folder under here
Show all subdirectories, at any depth
Print the folders in this tree
List subfolders recursively
Find directories only
Which directories are below this one?
Find all subfolders
List every folder below this one
| Show every directory under this one

find . -type f | wc -l
Count the files below this directory
How many files are in this tree?
Number of files in this folder and below
Count all files recursively
How many files are there under this folder?
Tell me the number of files in this tree
Count every file in here and in the subfolders
How many files are in this folder and its subfolders?
Count all the files in this tree
| How many files does this tree have in all?

ls | wc -l
How many items are in this folder?
Count the entries of this directory
Number of items here
Count what ls prints
How many entries does this folder have?
Tell me the number of items in this folder
Count the items of the current directory
Count the items in this folder
How many items does this directory have?
| Count how many items this directory has

curl ifconfig.me
What is my public IP address?
Show my external IP
Print the public IP of this machine
Which IP address does the internet see?
Tell me my public IP
Find out my external IP address
Look up my public address
Show my public IP address
What IP do others see from outside?
| Tell me the external IP address of this machine

ping -c 4 example.com
Is the internet reachable?
Ping example.com four times
Test my network connection
Am I online?
Check the connection to example.com
Send four pings to example.com
Check whether the network works
Is my network connection working?
Test the internet with a few pings
| Test whether the internet connection works
"""

SLOTS = {
    "ext": ["rs", "py", "md", "txt", "json", "toml", "log", "csv"],
    "file": ["notes.txt", "README.md", "main.rs", "data.csv", "server.log", "Cargo.toml"],
    "dir": ["src", "docs", "target", "tests", "build", "photos"],
    "script": ["run.sh", "build.sh", "deploy.sh", "test.sh", "setup.sh"],
    "word": ["TODO", "FIXME", "unsafe", "panic", "error", "main"],
    "n": ["3", "5", "10", "20", "50", "100"],
    "days": ["2", "3", "7", "14", "30"],
    "mb": ["10", "50", "100", "500"],
    "port": ["8000", "8080", "3000"],
    "tool": ["python3", "git", "cargo", "gcc", "node"],
    "branch": ["dev", "fix", "docs", "release", "test"],
}

SLOTTED = """
find . -name '*.{ext}'
Find all .{ext} files
List every {ext} file under this folder
Where are the .{ext} files?
Search for files ending in .{ext}
Show all files with the extension {ext}
Look for {ext} files in this tree
Find the files that end in .{ext}
Which .{ext} files are in this folder?
| Find files whose name ends in .{ext}
| Search this folder for .{ext} files

head -n {n} {file}
Show the first {n} lines of {file}
Print the top {n} lines of {file}
Give me the first {n} lines of {file}
See how {file} begins, {n} lines
What are the first {n} lines of {file}?
Display {n} lines from the start of {file}
First {n} lines of {file}
Show me only the top {n} lines of {file}
| Print {n} lines from the top of {file}
| Let me see the first {n} lines of {file}

tail -n {n} {file}
Show the last {n} lines of {file}
Print the bottom {n} lines of {file}
Give me the last {n} lines of {file}
See how {file} ends, {n} lines
What are the last {n} lines of {file}?
Display {n} lines from the end of {file}
Last {n} lines of {file}
Show me only the bottom {n} lines of {file}
| Print {n} lines from the bottom of {file}
| Let me see the last {n} lines of {file}

tail -f {file}
Follow {file} as it grows
Keep printing new lines of {file}
Watch {file} for new lines
Show {file} live, as lines are added
Follow the end of {file}
Wait for new lines in {file}
Show new lines of {file} as they come
Watch {file} live
| Watch new lines arrive in {file}

cat {file}
Show the contents of {file}
Print {file}
What is in {file}?
Display the file {file}
Print all of {file}
Write {file} to the terminal
Show {file}
Print the contents of {file}
| Show me what {file} contains

wc -l {file}
Count the lines of {file}
How many lines does {file} have?
Number of lines in {file}
Print the line count of {file}
Tell me how many lines are in {file}
Count lines in {file}
How long is {file}, in lines?
Show the number of lines in {file}
| How many lines are there in {file}?

wc -w {file}
Count the words of {file}
How many words does {file} have?
Number of words in {file}
Print the word count of {file}
Tell me how many words are in {file}
Count words in {file}
How long is {file}, in words?
Show the number of words in {file}
| How many words are there in {file}?

sort {file}
Sort the lines of {file}
Print {file} in alphabetical order
Put the lines of {file} in order
Show {file} sorted
Order {file} alphabetically
Sort {file}
Show {file} in sorted order
Print the sorted lines of {file}
| Show the lines of {file} in sorted order

sort {file} | uniq
Show the unique lines of {file}
Remove duplicate lines from {file}
Print {file} without duplicates
Sort {file} and drop repeated lines
List the distinct lines of {file}
Each line of {file} only once
Show {file} without duplicate lines
Sort {file} and remove the duplicates
| Print the lines of {file} without any duplicates

less {file}
Page through {file}
Read {file} one screen at a time
Open {file} in a pager
Scroll through {file}
View {file} page by page
Look through {file} in the pager
Read {file} page by page
Show {file} in a pager
| Scroll through {file} page by page

grep -rn '{word}' .
Search for {word} in all files here
Find every {word} in this folder
Where does {word} appear in the files?
Look for the text {word} recursively
Which lines contain {word}?
Search the files below for {word}
Find {word} in the files of this folder
Search this folder for the word {word}
| Find the lines that contain {word} in all files
| Look through this folder for {word}

grep -c '{word}' {file}
Count the lines with {word} in {file}
How many lines of {file} contain {word}?
How many lines in {file} have {word} in them?
Number of lines in {file} that contain {word}
Count the lines in {file} where {word} occurs
Tell me how many lines of {file} contain {word}
In how many lines of {file} is {word}?
Count the lines of {file} that contain {word}
| Count how many lines of {file} have {word}

mkdir {dir}
Make a folder called {dir}
Create the directory {dir}
Create a new folder named {dir}
Make a new directory {dir}
I need a folder {dir}
Add a directory called {dir}
Create {dir} as a new directory
Make the directory {dir}
| Create a directory called {dir}
| Make a new folder named {dir}

cd {dir}
Go into the folder {dir}
Change to the directory {dir}
Enter {dir}
Move into {dir}
Switch to the {dir} folder
Take me to {dir}
Go to the folder {dir}
Change directory to {dir}
| Go to the directory {dir}

ls {dir}
List the files in {dir}
What is in the folder {dir}?
Show the contents of the directory {dir}
Print the names of the files in {dir}
Which files does {dir} have?
See what {dir} contains
List the folder {dir}
Which files are in {dir}?
| Show which files are in {dir}

du -sh {dir}
How big is the folder {dir}?
Show the size of {dir}
How much space does {dir} take?
What is the size of the directory {dir}?
Total size of {dir}
Disk usage of {dir}
How much disk space does the folder {dir} use?
How large is {dir}?
| How large is the directory {dir}?

rm -i {file}
Delete {file}, but ask first
Remove {file}
Delete the file {file}
Get rid of {file}
Erase {file} after asking me
I do not need {file} any more, delete it
Remove {file}, but ask before
Delete {file} after asking
| Remove the file {file}, but ask me first

cp {file} {file}.bak
Make a backup of {file}
Copy {file} to {file}.bak
Back up {file}
Keep a copy of {file} with .bak at its end
Save a backup copy of {file}
Create a backup of {file}
Copy {file} to a backup
Back {file} up as {file}.bak
| Back up the file {file} as {file}.bak

touch {file}
Create an empty file called {file}
Make a new empty file {file}
Update the time stamp of {file}
Touch {file}
Create {file} if it does not exist
I need an empty {file}
Create the empty file {file}
Make an empty {file}
| Make an empty file named {file}

chmod +x {script}
Make {script} executable
Let me run {script} as a program
Allow execution of {script}
Give {script} the execute permission
Mark {script} as executable
Set the executable bit of {script}
Turn {script} into an executable
Make the file {script} executable
| Make the script {script} executable
| Add execute permission to {script}

sh {script}
Run the script {script}
Execute {script}
Start {script} with the shell
Run {script}
Launch the shell script {script}
Call {script}
Run {script} with the shell
Start the shell script {script}
| Start the script {script}

tar -czf {dir}.tar.gz {dir}
Compress the folder {dir}
Pack {dir} into a tar.gz archive
Make a compressed archive of {dir}
Create {dir}.tar.gz from {dir}
Archive the directory {dir}
Zip up {dir} as a tarball
Compress {dir} to {dir}.tar.gz
Make a tar.gz archive of the folder {dir}
| Create a compressed archive of the folder {dir}

tar -xzf {dir}.tar.gz
Extract {dir}.tar.gz
Unpack the archive {dir}.tar.gz
Open up {dir}.tar.gz
Uncompress {dir}.tar.gz here
Extract the files from {dir}.tar.gz
Unpack {dir}.tar.gz
Extract the files in {dir}.tar.gz
Unpack {dir}.tar.gz into this folder
| Extract the archive {dir}.tar.gz here

tar -tzf {dir}.tar.gz
List what is in {dir}.tar.gz
Show the contents of {dir}.tar.gz without extracting it
Which files are in the archive {dir}.tar.gz?
See inside {dir}.tar.gz, but do not unpack it
Print the names of the files in {dir}.tar.gz
Look into {dir}.tar.gz without unpacking
List the contents of {dir}.tar.gz without unpacking
What is inside {dir}.tar.gz? Do not extract it
| List the files in the archive {dir}.tar.gz without extracting them

find . -mtime -{days}
Find files changed in the last {days} days
Which files were modified in the past {days} days?
Show what changed within {days} days
List files modified in the last {days} days
Files that are newer than {days} days
Search for files touched in the last {days} days
Which files changed in the last {days} days?
Find what was modified in the past {days} days
| List what was changed in the past {days} days

find . -size +{mb}M
Find files larger than {mb} MB
Which files are bigger than {mb} megabytes?
Show files over {mb} MB
List all files above {mb} MB
Search for big files, more than {mb} MB
Look for files larger than {mb} megabytes
Find big files, over {mb} MB
Files of more than {mb} megabytes
| Find all files that are bigger than {mb} MB

git log -n {n}
Show the last {n} commits
Print the {n} most recent commits
What were the last {n} commits?
Log of the latest {n} commits
List the newest {n} commits
See the {n} latest commits
Show the {n} newest commits
Last {n} commits in the log
| Show me the {n} most recent commits

git switch {branch}
Switch to the branch {branch}
Check out the {branch} branch
Change to branch {branch}
Go to the {branch} branch
Move to the git branch {branch}
Put me on the branch {branch}
Switch to branch {branch}
Check out the branch {branch}
| Change to the {branch} branch

git switch -c {branch}
Create a branch called {branch}
Make a new branch {branch} and switch to it
Start a new branch named {branch}
Create and check out the branch {branch}
New git branch {branch}
Branch off as {branch}
Create the new branch {branch}
Make a branch called {branch}
| Create a new branch named {branch}

which {tool}
Where is {tool} installed?
Show the path of {tool}
Which {tool} is used?
Find the {tool} program
Where does the command {tool} live?
Print the location of {tool}
Find where {tool} is installed
Show me the location of the program {tool}
| Where is the program {tool}?

man {tool}
Show the manual of {tool}
How does {tool} work? Open its manual
Open the man page of {tool}
Read the manual page for {tool}
Display the help page of {tool}
I want to read the manual of {tool}
Show the man page of {tool}
Open the manual for {tool}
| Open the manual page of {tool}

python3 -m http.server {port}
Serve this folder over HTTP on port {port}
Start a web server on port {port}
Share this directory on port {port}
Run a simple HTTP server on port {port}
Start a file server at port {port}
Host the current directory on port {port}
Run a web server on port {port}
Serve the files of this folder on port {port}
| Run a web server for this folder on port {port}

lsof -i :{port}
Which process uses port {port}?
What is listening on port {port}?
Show who is using port {port}
Find the process on port {port}
Is anything running on port {port}?
Check what occupies port {port}
Which program is using port {port}?
Show the process that listens on port {port}
| Find out which process is using port {port}
"""


def groups(text):
    """(command, requests to train on, requests held out) of each paragraph."""
    for paragraph in text.strip().split("\n\n"):
        command, *requests = paragraph.split("\n")
        yield (command, [r for r in requests if not r.startswith("|")],
               [r[1:].strip() for r in requests if r.startswith("|")])


def fill(template, values):
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]], template)


def fillings(command, count, rng):
    """`count` ways to fill the command's slots, each slot going round a shuffled list of its values."""
    names = sorted(set(re.findall(r"\{(\w+)\}", command)))
    columns = []
    for name in names:
        column = []
        while len(column) < count:
            column += rng.sample(SLOTS[name], len(SLOTS[name]))
        columns.append(column[:count])
    return [dict(zip(names, row)) for row in zip(*columns)]


def record(request, command):
    return {"prompt": request + ARROW, "completion": " " + command}


def key(record):
    return " ".join(record["prompt"].lower().split())


def make():
    # Each split draws on its own, so that adding requests to one leaves the other as it is.
    train, valid = [], []
    for records, split in [(train, 1), (valid, 2)]:
        rng = random.Random(SEED * 2 + split)
        for group in groups(PLAIN):
            records += [record(request, group[0]) for request in group[split]]
        for group in groups(SLOTTED):
            for request, values in zip(group[split], fillings(group[0], len(group[split]), rng)):
                records.append(record(fill(request, values), fill(group[0], values)))
        rng.shuffle(records)
    return train, valid


def words(record):
    return set(re.findall(r"\w+", record["prompt"].lower()))


def nearest(record, train):
    """The train record whose request shares the largest part of its words (Jaccard), the first of equals."""
    mine = words(record)
    return max(train, key=lambda r: len(mine & words(r)) / len(mine | words(r)))


def main():
    train, valid = make()
    keys = [key(r) for r in train]
    assert len(set(keys)) == len(keys), [k for k in keys if keys.count(k) > 1]
    held = [key(r) for r in valid]
    assert len(set(held)) == len(held), [k for k in held if held.count(k) > 1]
    assert not set(keys) & set(held), set(keys) & set(held)
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for name, records in [("train", train), ("valid", valid)]:
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}.jsonl: {len(records)} records, {len({r['completion'] for r in records})} distinct commands")
    known = {r["completion"] for r in train}
    lacking = [r["completion"].strip() for r in valid if r["completion"] not in known]
    print(f"answers of valid.jsonl that train.jsonl lacks: {len(lacking)}: {lacking}")
    same = sum(nearest(r, train)["completion"] == r["completion"] for r in valid)
    print(f"the nearest train request has the same answer: {same} of {len(valid)}")


if __name__ == "__main__":
    main()
